"""The paper's tables and figures: their contents, the printed values, and how ours are measured.

`tables` and `settled` are data; `measuring` turns them into stages and cells of runs; `comparison` shows our results
next to the printed ones; `drawing` makes the figures; `cost` estimates the cost beforehand. `python -m
satm_tf.reproduce` is the command.
"""
