"""What every program needs and nothing about language: command line, files, progress, locks."""

# First of all: Ctrl-C while a program imports ends it with a line.
from data.common import signals as signals
