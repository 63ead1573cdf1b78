"""Whose a change is: sessions, foreign tools and what editors meant to write.

An agent's hook imports ``intentlog`` from here within milliseconds: nothing is imported by this file.
"""
