"""Which example comes when: shuffling, mixtures, weights and tags, as pure functions of the seed and the position."""
