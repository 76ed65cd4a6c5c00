"""The speed bench: `python -m tests.bench` measures turns here beside what else a game could use.

workload.py   the prompts and lengths that all contestants get
drive.py      players on threads, each taking turns in a row
memory.py     what this process holds at most
models.py     the embedded base with the shipped bundle, in a precision
ours.py       contestant: the engine's own host
original.py   contestant: the library's generate and a second forward pass
llama_cpp.py  contestant: a llama.cpp server, the state asked for as JSON
gguf.py       the embedded base's GGUF file, for it
limit.py      what this machine's memory and matrix units would allow
cells.py      one contestant with so many players: what to run, what came out
child.py      runs one cell, or the limit, in a process of its own
figures.py    ratios, memory a further player, and what is to be reached
report.py     the table
plot.py       the picture
__main__.py   which cells, in which order
"""
