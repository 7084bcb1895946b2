"""What transfers cost beside scp, rsync and plain paramiko."""
