"""What knows machines: release directories, the holder that supervises, probes, switching."""
