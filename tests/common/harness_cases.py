"""Tiny local tasks for lm-eval: multiple choice, perplexity and generation, of JSON lines beside their YAML files."""

import json

CHOICES = [
    ("The capital of France is", ["London", "Paris", "Rome and the sea"], 1),
    ("Two plus two is", ["four", "five", "a green horse"], 0),
    ("A dog says", ["meow", "woof", "moo"], 1),
    ("The first president of the United States was George", ["Bush", "Lucas", "Washington"], 2),
]
TEXTS = [
    "The sea was calm, and the ship lay at anchor in the bay. The captain looked at the stars and thought of home.",
    "def add(a, b):\n    return a + b\n",
    "In 1905 Albert Einstein published four papers: größer, 12345.",
]
QUESTIONS = [("Count: one, two, three,", " four, five, six"), ("The capital of Italy is", " Rome"), ("Hot or", " cold")]
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
"""
KINDS = {
    "local_choice": """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "local_text": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""",
    "local_write": """output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [".", "\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


def write_tasks(directory):
    """A directory of task files, and of their data."""
    rows = {
        "local_choice": [{"question": q, "choices": c, "answer": a} for q, c, a in CHOICES],
        "local_text": [{"text": text} for text in TEXTS],
        "local_write": [{"question": q, "answer": a} for q, a in QUESTIONS],
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, kind in KINDS.items():
        data = directory / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        (directory / f"{name}.yaml").write_text(TASK.format(name=name, data=data) + kind)
    return directory
