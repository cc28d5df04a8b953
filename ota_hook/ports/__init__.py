"""What the shells need from outside, as Protocols. Adapters and test doubles implement them; bootstrap/ joins.

A module for each subject; none must know who implements it. Import from the module: nothing is named here.
"""
