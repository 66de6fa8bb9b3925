"""Whether a change of settings helps: paired runs with it and without, side by side.

Knows nothing about why it should.
"""
