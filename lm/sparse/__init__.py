"""Always-sparse weights: Top-KAST and Powerpropagation."""
