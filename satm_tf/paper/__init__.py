"""The paper's tables and figures: their contents, the printed figures, and how we measure ours next to them.

`tables` and `settled` are data; `measuring` turns them into stages and cells of runs; `comparison` shows our results
next to the printed ones; `drawing` makes the figures; `cost` says beforehand what all of it takes. `python -m
satm_tf.reproduce` is the command.
"""
