"""Labelled images from the disk: data sets in their official forms, untrusted image files, and how pixels become inputs."""
