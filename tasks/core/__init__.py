"""What knows nothing of models or hosts: digests, store, recipes, records, and Quern's doit."""
