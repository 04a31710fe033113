"""What every program needs and nothing about language: command line, files, progress, locks."""
