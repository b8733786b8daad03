"""What the words and numbers of a report mean, in one sentence or two each.

The page shows them on hover and focus and lists them at its end. Must not know where they are used.
"""

from __future__ import annotations

DEFINITIONS = {
    "arm": "One model with one history strategy. All arms play the same env seeds.",
    "strategy": "What of the past turns the model is shown: its history strategy.",
    "answers": "free: any text. guided: the server held the reply to the env's grammar.",
    "episodes": "Episodes that count. Those lost to errors of the server or the env do not.",
    "success": "Share of episodes that the env itself calls a success, among those that count.",
    "95 % CI": "A range made by a method that holds the true value in 95 of 100 experiments.",
    "return": "Sum of an episode's rewards, averaged over episodes.",
    "norm. score": "Mean return on a scale on which random play is 0 and the oracle is 1.",
    "turns": "Replies of the model per episode; each is followed by one step of the env.",
    "valid actions": "Mean over episodes of the share of turns in which a legal action was taken.",
    "random": "A policy that draws any legal action, on the same seeds.",
    "oracle": "The best play there is, with full knowledge of the hidden state, on the same seeds.",
    "points": "Percentage points: the plain difference of two rates.",
    "paired seeds": "Env seeds that both arms finished. Only on these are arms compared.",
    "flips": "Seeds that exactly one of the two arms wins. They alone carry evidence.",
    "McNemar": "A test of the flips: were the arms equally good, each side would win half of them.",
    "sign-flip permutation": (
        "A test of the differences per seed: were the arms equal, every sign could be the other."
    ),
    "p-value": "How often equal arms would differ by this much or more, by chance alone.",
    "Holm": "The p-value made larger for the number of pairs of arms that were compared.",
    "power": "The chance to decide, if the difference is what it is said to be.",
    "e-value": (
        "What a gambler who starts with 1 and bets against equality owns by now. At 1 / alpha the "
        "arms are told apart, with a false alarm in at most alpha of all runs, however often one "
        "looks."
    ),
    "confidence sequence": (
        "An interval that holds the true difference after every pair at once, in 95 of 100 runs: "
        "one may look, and stop, at any time."
    ),
    "alpha": "The largest accepted chance of telling equal arms apart.",
    "equivalent": "The difference is shown to lie within the margin, on both sides of 0.",
    "Forest": "Each arm's success as a dot, its interval as a line, on one common scale.",
    "Flips": "A mosaic: the area of each field is the share of seeds that ended so.",
    "Kaplan-Meier": (
        "Share of episodes that have succeeded by each turn. Episodes that were cut off count as "
        "long as they were watched; those that lost count as never succeeding."
    ),
    "censored": "Watched up to here and not successful by then: cut off, or lost.",
    "Taxonomy": "How each turn fared as a turn, and why each episode ended.",
    "Cost": "Tokens read and written per episode, beside the success they bought.",
    "tokens per episode": "Prompt and completion tokens of all turns, averaged over episodes.",
    "Evidence": "What a test that may be read after every pair said as the pairs came in.",
    "Seeds": "Every env seed in every arm, the ones that more arms win further left.",
    "Latency": "Share of calls that had been answered within each time.",
    "ok": "Exactly one legal action.",
    "refusal": "The server marked the reply as a refusal.",
    "truncated_tokens": "The reply was cut by the token limit.",
    "empty": "No text, or nothing but reasoning.",
    "no_action": "Text without an action.",
    "illegal": "An action that the rules did not allow then.",
    "multi_action": "Several actions; the first one was taken.",
    "unclosed": "The action's tag was never closed; what follows it was taken.",
    "terminated": "The task ended, won or lost.",
    "truncated": "The env's turn budget was used up.",
    "context_overflow": "The history no longer fit the model's context. Scored as it stood.",
    "infra_error": "A call failed for good. Not scored.",
    "env_error": "The env raised an error. Not scored.",
}

IN_SENTENCES = {
    "95 % CI": "95 % CI",
    "exact McNemar": "McNemar",
    "sign-flip permutation": "sign-flip permutation",
    "points": "points",
    "flips": "flips",
    "paired seeds": "paired seeds",
    "after Holm": "Holm",
    "80 % power": "power",
    "success": "success",
    "return": "return",
    "turns": "turns",
    "valid actions": "valid actions",
    "random": "random",
    "oracle": "oracle",
    "e-value": "e-value",
    "confidence sequence": "confidence sequence",
    "equivalent": "equivalent",
}
"""Words of a verdict, and the definition that each is given."""
