"""What a run left behind, as one page and as plain data.

Knows nothing about how a run is made: it reads files, also while they are being written.
"""
