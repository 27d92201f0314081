"""Final answers, read and compared. Nothing is executed, and every length, depth and size is bounded.

numbers.py                  `#### 1,234`: one exact number
places.py                   what stands behind a marker, or on the last line
boxes.py                    what stands in \\boxed{}
reading.py                  LaTeX as a number, list, interval, equation, word, ...; units.py: the words beside it
expressions.py evaluation.py    formulas as trees, and what they are worth
equality.py                 whether an answer is the gold one
formulas.py                 the same, with math-verify where our reader cannot read the gold
evaluated.py                what a scorer that evaluates answers may be given
"""
