"""`holdfast serve`: a small, real inference server for laptops, tests and the demo.

It speaks the part of vLLM's HTTP API that `holdfast sync` and clients use, on transformers and PEFT. One thread makes
all tokens, one request's token at a time and in turns, so an answer is, token by token, what transformers and PEFT
would give.

What it promises beyond vLLM: weights are read wholly when they are loaded and their files never again; and one answer
is made by one version of the weights, whatever is loaded, unloaded or reloaded meanwhile.

Modules, from the bottom up: `errors`, `reading` (files), `weights` (the model with its adapters), `sampling`, `text`
(tokens to text), `jobs` (requests), `engine` (the thread), `adapters` (the names), `bodies` and `answers` (JSON),
`metrics`, `server`, `routes`, `app`, `process`.
"""
