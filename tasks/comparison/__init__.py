"""What knows models and hosts: two live releases held against each other."""
