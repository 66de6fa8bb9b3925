"""What Lightning leaves out of a checkpoint, saved at a boundary and put back at the same one."""
