"""What a run takes of the machine it is on, what follows from that, and memory given back in time.

Knows nothing about Lightning's loops, nor how a run is saved.
"""
