"""The paper's tables and figures: what each is of, what was printed, and how ours are measured beside them.

`tables` and `settled` are data; `measuring` turns them into stages and cells of runs; `comparison` sets what came out
beside what was printed; `drawing` makes the figures; `cost` says beforehand what all of it takes.
`python -m satm_tf.reproduce` is the command.
"""
