"""The paper's tables and figures: their contents, the printed values, and how ours are measured.

`tables` is data; `measuring` turns it into stages and cells of runs; `comparison` shows our results next to the printed
ones; `drawing` makes the figures; `reproduction` is what `satm-tf reproduce` does, and estimates its cost beforehand.
"""
