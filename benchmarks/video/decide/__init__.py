"""Salt against DMD over many seeds, to the end and at each one's best update."""
