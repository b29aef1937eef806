"""What builds, steers and observes a host: xl configs, domain builder, lifecycle, command line."""
