"""Problems whose answers are known, each written as a user of blo would write it.

A module states a problem, solves it with blo, and computes the truth by a method that shares no code with blo: a closed
form in NumPy, a SciPy optimiser at its tightest tolerance, scikit-learn, or plain autodiff through every step.
"""
