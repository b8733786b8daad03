"""From the served policy to training rows: seeds, episodes, rewards, advantages."""
