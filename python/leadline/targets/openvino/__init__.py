"""OpenVINO: the QDQ artefact on Intel's CPUs, and which of its layers run there in integers."""
