"""Programs as responses: read, cut into statements, and judged by tests in the sandbox.

reading.py       the program in a response, its normal form, where it may be cut
formats.py       problems of MBPP, HumanEval and APPS, as their files have them
drawn.py         small functions of one's own, drawn without end
unit_tests.py    the tests of a problem, and the share of them that a program passes
candidate.py     runs inside: the program under test, which is asked one call at a time
examiner.py      runs inside, elsewhere: tests that are a script, which asks the candidate
values.py        plain values as JSON, between the two
"""
