"""The runtimes an artefact is meant for, as this machine has them."""
