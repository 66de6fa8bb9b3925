"""Files that are whole, on the disk and told apart: without torch, without Lightning."""
