"""Bad flags of every launcher, and a part of the line that says so. A task of a launcher comes before its flags."""

COUNTS = ("width", "num_heads", "num_layers", "chunk_size", "batch_size", "steps", "eval_every", "seeds")

HOSTS = [
    (["--coordinator=127.0.0.1:8476"], "--num_processes: missing"),
    (["--process_id=0"], "--coordinator: missing"),
    (["--coordinator=here", "--num_processes=2", "--process_id=0"], "--coordinator=here: expected HOST:PORT"),
    (["--coordinator=a:1", "--num_processes=0", "--process_id=0"], "--num_processes=0: expected at least 1"),
    (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "--process_id=2: expected 0 to 1"),
    (["--start_timeout=0"], "--start_timeout=0: expected at least 1"),
]

LANGUAGE_MODEL = [
    *HOSTS,
    (["--steps=0"], "--steps=0: expected at least 1"),
    (["--seq_len=0"], "--seq_len=0: expected at least 1"),
    (["--eval_every=0"], "--eval_every=0: expected at least 1"),
    (["--checkpoint_every=0"], "--checkpoint_every=0: expected at least 1"),
    (["--accumulate=0"], "--accumulate=0: expected at least 1"),
    (["--accumulate=3", "--batch_size=4"], "--batch_size=4 --accumulate=3: expected a batch of a multiple of"),
    (["--profile=0"], "--profile=0: expected 1 to "),
    (["--dtype=float16"], "flag --dtype=float16: value should be one of <float32|bfloat16>"),
    (["--remat=some"], "flag --remat=some: value should be one of <none|block|dots>"),
    (["--kernel=fast"], "flag --kernel=fast: value should be one of <auto|xla|pallas>"),
    (["--kernel=pallas", "--models=delta_net"], "--models=delta_net --kernel=pallas: cpu runs no kernels"),
    (["--kernel=pallas", "--models=lstm"], "--kernel=pallas: LSTM with these options has none"),
    (["--seed=-1"], "--seed=-1: expected 0 to"),
    (["--seed=99999999999"], "--seed=99999999999: expected 0 to"),
    (["--learning_rate=0"], "--learning_rate=0.0: expected"),
    (["--learning_rate=-1"], "--learning_rate=-1.0: expected"),
    (["--models="], "--models: none given; expected some of"),
    (["--models=hope,hope"], "--models=hope,hope: expected some of"),
    (["--models=hope,hopeless"], "hopeless"),
    (["--preset=enormous"], "enormous"),
    (["--mesh=data:3"], "mesh 'data:3' asks for 3 devices, but there are"),
    (["--mesh=pipeline:2"], "mesh 'pipeline:2': unknown axis"),
    (["--data=missing.txt"], "missing.txt"),
    (["--tokenizer=missing.json"], "missing.json"),
    (["--seq_len=1000000"], "--seq_len=1000000: expected at most"),
]

COMPARE = [
    *HOSTS[:1],
    (["--points=1"], "--points=1: expected at least 2"),
    (["--seeds=0"], "--seeds=0: expected at least 1"),
    (["--seed=1"], "Unknown command line flag 'seed'"),
    (["--optimizer=adam"], "--optimizer=adam"),
    (["--matrix_learning_rate=0"], "--matrix_learning_rate=0.0: expected"),
]

CONTEXT = [
    *HOSTS[:1],
    (["--start_from=nowhere"], "--start_from=nowhere: expected a run of this launcher"),
    (["--chunk_size=0"], "--chunk_size=0: expected at least 1"),
    (["--models=hope", "--cms_regime=meta", "--cms_levels=8", "--chunk_size=3"], "expected a divisor of 8"),
    (["--cms_rate=-1"], "--cms_rate=-1.0: expected "),
    (["--seeds=0"], "--seeds=0: expected at least 1"),
    (["--seed=1"], "Unknown command line flag 'seed'"),
    (["--seq_len=1000000"], "--seq_len=1000000: expected at most"),
    (["--models=hopeless"], "hopeless"),
]

GENERATE = [
    (["--workdir=nowhere"], "--workdir=nowhere: no run there"),
    (["--num_tokens=0"], "--num_tokens=0: expected at least 1"),
    (["--temperature=-1"], "--temperature=-1.0: expected at least 0"),
    (["--prompt=\udcff"], "--prompt: not UTF-8"),
    (["--top_k=-1"], "--top_k=-1: expected at least 0"),
    (["--top_p=0"], "--top_p=0.0: expected a number above 0"),
    (["--stop="], "--stop=: expected some text"),
    (["--chat"], "--chat: expected --pretrained"),
    (["--pretrained=default"], "--workdir: given with --pretrained"),
]

STREAM = [
    (["--workdir=nowhere"], "--workdir=nowhere: no run there"),
    (["--fresh=maybe"], "flag --fresh=maybe"),
]

LEARN = [
    (["--files=/absent"], "/absent: cannot be read (No such file or directory)"),
    (["--files={inputs}/labels.csv", "--text_column=body"], "labels.csv:2: no column 'body'; there are text, label"),
    (["--form=xml"], "flag --form=xml: value should be one of <text|csv|jsonl>"),
    (["--passes=0"], "--passes=0: expected at least 1"),
    (["--batch_size=0"], "--batch_size=0: expected at least 1"),
    (["--chunk=0"], "--chunk=0: expected at least 1"),
    (["--save_every=0"], "--save_every=0: expected at least 1"),
    (["--question=none"], "--question=none: expected {text} in it"),
    (["--ask_itself", "--question={text}?"], "--question={text}?: given with --ask_itself"),
    (["--pretrained=/absent"], "--pretrained=/absent: /absent: no such file or directory"),
    (["--levels=:period=2"], "level ':period=2' has no name"),
    (["--levels=fast:pace=2"], "level 'fast': unknown key 'pace'"),
    (["--levels=fast:period=half"], "level 'fast': period='half'; expected a whole number"),
    (["--levels=fast:period=0"], "level 'fast': period"),
    (["--levels=fast:blocks=a..b"], "level 'fast': blocks='a..b'; expected block numbers"),
    (["--levels=fast:blocks=7"], "level 'fast': block 7; expected -2 to 1"),
    (["--levels=fast:protects=maybe"], "level 'fast': protects='maybe'; expected true or false"),
    (["--levels=fast:rule=newton"], "level 'fast': rule='newton'"),
    (["--levels=/absent.json"], "--levels=/absent.json: cannot be read"),
]

ASK = [
    (["--workdir=nowhere"], "--workdir=nowhere: no run there"),
    (["--num_tokens=0"], "--num_tokens=0: expected at least 1"),
    (["--temperature=-1"], "--temperature=-1.0: expected at least 0"),
    (["--top_k=-1"], "--top_k=-1: expected at least 0"),
    (["--top_p=0"], "--top_p=0.0: expected a number above 0"),
    (["--stop="], "--stop=: expected some text"),
    (["--labels=a,b"], "--labels=a,b: expected --classify"),
    (["--classify", "--chat"], "--chat: given with --classify"),
]

SUBJECTS = [
    (["--num_processes=2"], "Unknown command line flag 'num_processes'"),
    (["--seeds=0"], "--seeds=0: expected at least 1"),
    (["--seed=1"], "Unknown command line flag 'seed'"),
    (["--regimes=meta,inner"], "--regimes=meta,inner: expected some of meta, online, outer, none twice"),
    (["--regimes=meta,meta"], "none twice"),
    (["--model=transformer"], "--model=transformer: expected one with a CMS of several levels"),
    (["--part=640"], "--part=640: expected a multiple of 256 and of --seq_len=128"),
    (["--part=256"], "--part=256: expected at least 512"),
    (["--seq_len=100"], "--seq_len=100: expected a multiple of 64"),
    (["--texts=nowhere.txt,b.txt"], "--texts=nowhere.txt: data path 'nowhere.txt': no such file"),
    (["--texts=one.txt"], "--texts=one.txt: expected two or more"),
    (["--streams=1000"], "--streams=1000 of --part=512 bytes need"),
]

RECALL = [
    (["--pairs=0"], "--pairs=0: expected at least 1"),
    (["--pairs=3"], "--seq_len=8: expected at least 12, four times --pairs=3"),
    (["--vocab_size=5"], "--vocab_size=5: expected at least 6 for --pairs=2"),
    (["--width=10", "--num_heads=3"], "--num_heads=3: expected a divisor of --width=10"),
    (["--models=transformer", "--width=6"], "--models=transformer: --num_heads=2: expected a divisor of --width=6"),
    (["--models=hope,hopeless"], "--models=hope,hopeless: expected some of"),
    (["--models="], "--models: none given; expected some of"),
    (["--models=hope,hope"], "--models=hope,hope: expected some of"),
    (["--other_text=5,many"], "--other_text=5,many: expected numbers from 1"),
    *(([f"--{name}=0"], f"--{name}=0: expected at least 1") for name in COUNTS),
]

PARITY = [
    (["--min_length=0"], "--min_length=0: expected at least 1"),
    (["--max_length=1"], "--max_length=1: expected at least 2"),
    (["--long_length=8"], "--long_length=8: expected at least 9"),
    (["--validation_sequences=0"], "--validation_sequences=0: expected at least 1"),
    (["--validation_sequences=255"], "255 distinct strings of even parity, 2 to 8 symbols long: expected at most 254"),
    (["--steps=0"], "--steps=0: expected at least 1"),
    (["--models=delta_net,hopeless"], "--models=delta_net,hopeless: expected some of"),
    (["--mixer_option=window"], "--mixer_option=window: expected name=value"),
    (["--mixer_option==3"], "--mixer_option==3: expected name=value"),
    (["--mixer_option=chunk_size=4"], "--mixer_option=chunk_size=4: expected an option of a mixer; flags of their own"),
    (["--mixer_option=eta=1.0"], "--mixer_option=eta=1.0: expected every option once"),
    (["--mixer_option=delta=false"], "--mixer_option=delta=false: expected a Python value"),
    (["--mixer_option=mu=(1,"], "--mixer_option=mu=(1,: expected a Python value"),
    (["--mixer_option=mu=[1]"], "--mixer_option=mu=[1]: expected a number"),
    (["--mixer_option=rule=unknown"], "--mixer_option=rule=unknown: rule='unknown': expected one of"),
    (["--mixer_option=windows=3"], "unexpected keyword argument 'windows'"),
    (["--mixer_option=rngs=3"], "multiple values for keyword argument 'rngs'"),
    (["--mixer_option=mu=()"], "--models=delta_net"),
    (["--models=transformer"], "unexpected keyword argument 'allow_neg_eigval'"),
]

OPTIMIZERS = [
    ([], "first argument missing: expected one of toy, continual, training, speed"),
    (["train"], "first argument train: expected one of"),
    (["toy", "--optimizers=sgd,adamw"], "--optimizers=sgd,adamw: expected some of sgd, momentum"),
    (["speed", "--optimizers=muon,muon"], "none twice"),
    (["speed", "--optimizers="], "--optimizers: none given"),
    (["speed", "--sizes=many"], "--sizes=many: expected numbers of parameters"),
    (["speed", "--sizes=1e6,1e6"], "none twice"),
    (["speed", "--sizes=-1"], "--sizes=-1: expected numbers of parameters"),
    (["speed", "--rounds=0"], "--rounds=0: expected at least 1"),
    (["continual", "--num_tasks=1"], "--num_tasks=1: expected at least 2"),
    (["continual", "--seeds=0"], "--seeds=0: expected at least 1"),
    (["training", "--task=gan"], "--task=gan: expected one of vit, lm"),
    (["training", "--task=lm", "--model=gpt"], "--model=gpt: expected one of hope"),
    (["training", "--steps=50"], "--eval_every=20: expected a divisor of the 50 steps"),
    (["training", "--points=1"], "--points=1: expected at least 2"),
    (["training", "--image_size=6"], "--image_size=6: expected a multiple of 4"),
    (["training", "--images=/absent"], "image path '/absent': no such directory"),
    (["training", "--task=lm", "--data=/absent"], "data path '/absent'"),
]

BENCHMARK = [
    ([], "first argument missing: expected one of mixers, scaling, compile"),
    (["mixer"], "first argument mixer: expected one of"),
    (["mixers", "--models=transformer,hopeless"], "--models=transformer,hopeless: expected some of hope,"),
    (["mixers", "--models="], "--models: none given"),
    (["mixers", "--models=hope,hope"], "none twice"),
    (["mixers", "--competitors=gpt"], "--competitors=gpt: expected some of jax_attention, torch"),
    (["mixers", "--lengths=64"], "--lengths=64: expected tokens:batch pairs"),
    (["mixers", "--lengths=64:0"], "--lengths=64:0: expected tokens:batch pairs"),
    (["mixers", "--lengths=64:1,64:1"], "none twice"),
    (["scaling", "--lengths=64:1,128:2"], "--lengths=64:1,128:2: expected two or more lengths at one batch size"),
    (["compile", "--depths=2,0"], "--depths=2,0: expected numbers of layers"),
    (["mixers", "--repeats=0"], "--repeats=0: expected at least 1"),
    (["mixers", "--matrix_size=99999"], "--matrix_size=99999: expected 1 to 16384"),
    (["mixers", "--num_heads=3"], "cannot be built: --num_heads=3"),
    (["gpu", "--preset=enormous"], "unknown preset 'enormous'"),
    (["gpu", "--max_minutes=-1"], "--max_minutes=-1.0: expected at least 0"),
    (["gpu", "--models=gpt"], "--models=gpt: expected some of hope,"),
    (["gpu", "--lengths=8192"], "--lengths=8192: expected tokens:batch pairs"),
    (
        ["kernel", "--models=mesa", "--preset=tiny"],
        "--models=mesa: --kernel=pallas: Mesa with these options has none",
    ),
    (["mixers", "--kernel=pallas"], "kernel=pallas: cpu runs no kernels"),
    (["gpu", "--dtype=float16"], "flag --dtype=float16: value should be one of <float32|bfloat16>"),
]

TOPOLOGY = [
    (["--topology=v9:2x2"], "topology 'v9:2x2': expected a TPU"),
    (["--topology=v5e"], "topology 'v5e': expected a TPU"),
    (["--models=hopeless"], "hopeless"),
    (["--preset=enormous"], "enormous"),
    (["--seq_len=0"], "--seq_len=0: expected at least 1"),
    (["--batch_size=-1"], "--batch_size=-1: expected at least 1"),
    (["--learning_rate=0"], "--learning_rate=0.0: expected"),
]

FAULTS = [
    (["--rounds=0"], "--rounds=0: expected at least 1"),
    (["--kinds=kill_step,earthquake"], "--kinds=kill_step,earthquake: expected some of kill_anywhere"),
    (["--kinds="], "--kinds: none given"),
    (["--kinds=frozen,frozen"], "none twice"),
]

CLASS_INCREMENTAL = [
    (["--data_dir="], "--data_dir: missing"),
    (["--data_dir=/absent"], "/absent/banking77/train.csv: no such file"),
    (["--dataset=imdb"], "flag --dataset=imdb: value should be one of <clinc150|banking77|dbpedia>"),
    (["--order=random"], "flag --order=random"),
    (["--order=domains"], "--order=domains: banking77 has no domains"),
    (["--tasks=1"], "--tasks=1: expected at least 2"),
    (["--tasks=4"], "--tasks=4: expected a divisor of the 6 classes of banking77"),
    (["--layer=3"], "--layer=3: expected 0 to 2, the blocks of the model"),
    (["--seeds=0"], "--seeds=0: expected at least 1"),
    (["--methods="], "--methods: none given"),
    (["--methods=lda,lda"], "none twice"),
    (["--methods=lda,gpt"], "--methods=lda,gpt: expected some of hebbian"),
    (["--pretrained=/absent"], "/absent: no such file or directory"),
    (["--form=images"], "flag --form=images: value should be one of <features|text>"),
    (["--train_per_class=5"], "--train_per_class=5: not with --form=features"),
    (["--form=text", "--methods=levels", "--layer=1"], "--layer=1: not with --form=text"),
    (["--form=text", "--methods=levels", "--test_per_class=0"], "--test_per_class=0: expected at least 1"),
    (["--form=text", "--methods=lda"], "--methods=lda: expected some of levels"),
]

INCORPORATE = [
    (["--methods="], "--methods: none given"),
    (["--methods=levels,levels"], "none twice"),
    (["--methods=levels,rag"], "--methods=levels,rag: expected some of without, in_context, levels"),
    (["--facts=0"], "--facts=0: expected 1 to 576"),
    (["--statements=4"], "--statements=4: expected 1 to 3"),
    (["--passes=0"], "--passes=0: expected at least 1"),
    (["--seeds=0"], "--seeds=0: expected at least 1"),
    (["--other_texts=13"], "--other_texts=13: expected 1 to 12"),
    (["--text={inputs}/facts.txt"], "--questions: missing; expected it with --text"),
    (["--questions={inputs}/questions.jsonl"], "--text: missing; expected it with --questions"),
    (["--text=/absent", "--questions={inputs}/questions.jsonl"], "/absent: cannot be read"),
    (["--text={inputs}/facts.txt", "--questions={inputs}/labels.csv"], "labels.csv:2: no column 'question'"),
    (["--pretrained=/absent"], "--pretrained=/absent: /absent: no such file or directory"),
]

NEW_LANGUAGES = [
    (["--methods="], "--methods: none given"),
    (["--methods=levels_1,levels_1"], "none twice"),
    (["--methods=levels_4"], "--methods=levels_4: expected some of guess, without, in_context, levels_1"),
    (["--sentences=0"], "--sentences=0: expected at least 1"),
    (["--sentences=9000"], "--sentences=9000, --tests=2: expected at most 344 together of 10 words"),
    (["--tests=0"], "--tests=0: expected at least 1"),
    (["--passes=0"], "--passes=0: expected at least 1"),
    (["--seeds=0"], "--seeds=0: expected at least 1"),
    (["--window=0"], "--window=0: expected at least 1"),
    (["--words=9"], "--words=9: expected 10 to 60"),
    (["--words=61"], "--words=61: expected 10 to 60"),
    (["--pairs_a={inputs}/pairs.tsv"], "--pairs_b: missing; expected it with --pairs_a"),
    (["--pairs_b={inputs}/pairs.tsv"], "--pairs_a: missing; expected it with --pairs_b"),
    (["--pairs_a={inputs}/pairs.tsv", "--pairs_b=/absent"], "/absent: cannot be read"),
    (["--pairs_a={inputs}/pairs.tsv", "--pairs_b={inputs}/labels.csv"], "labels.csv:1: 1 columns; expected a sentence"),
    (
        ["--pairs_a={inputs}/pairs.tsv", "--pairs_b={inputs}/pairs.tsv", "--sentences=11"],
        "pairs.tsv: 12 different sentences; expected 13",
    ),
    (["--pretrained=/absent"], "--pretrained=/absent: /absent: no such file or directory"),
]

EVALS = [
    *((f"--{name}=0", f"--{name}=0: expected at least 1") for name in COUNTS),
    ("--preset=huge", "flag --preset=huge: value should be one of <quick|full>"),
    ("--models=", "--models: none given; expected some of"),
    ("--models=nope", "--models=nope: expected some of"),
    ("--subtasks=", "--subtasks: none given; expected some of"),
    ("--subtasks=nope", "--subtasks=nope: expected some of"),
    ("--learning_rates=", "--learning_rates=: expected distinct numbers from 1e-12 to 1e3"),
    ("--learning_rates=1e-3,0.001", "--learning_rates=1e-3,0.001: expected distinct numbers"),
    ("--learning_rates=1e-3,fast", "--learning_rates=1e-3,fast: expected distinct numbers"),
    ("--learning_rates=nan", "--learning_rates=nan: expected distinct numbers"),
    ("--num_heads=3", "--models="),
    ("--parameters=3", "--parameters=3: "),
    ("--workers=0", "--workers=0: expected at least 1"),
    ("--mixer_option=speed=3", "--mixer_option=speed=3"),
]
EVALS = [([flag], problem) for flag, problem in EVALS]  # of every evaluation
LONG_TEXT = [
    *EVALS,
    (["--length=0"], "--length=0: expected at least 1"),
    (["--samples=0"], "--samples=0: expected at least 1"),
    (["--longest_samples=0"], "--longest_samples=0: expected at least 1"),
    (["--haystack=nowhere.txt"], "nowhere.txt: cannot be read as UTF-8 text"),
    (["--tokenizer=nowhere.json"], "no such file; expected a Hugging Face tokenizer.json"),
]

LM_EVAL = [
    (["--workdir=nowhere"], "--workdir=nowhere: no run there"),
    (["--workdir=", "--model=/absent"], "--model=/absent: /absent: no such file or directory"),
    (["--workdir=", "--model={inputs}/llama", "--tokenizer=a.json"], "--tokenizer=a.json: expected --workdir"),
    (["--workdir=", "--model={inputs}/llama", "--chat"], "llama has no chat template"),
    (["--workdir=", "--model={inputs}/llama"], "--tasks: none given"),
    (["--limit=0"], "--limit=0: expected at least 1"),
    (["--num_fewshot=-1"], "--num_fewshot=-1: expected at least 0"),
    (["--max_length=1"], "--max_length=1: expected at least 2"),
    (["--batch_size=0"], "--batch_size=0: expected at least 1"),
    (["--tasks_dir=nowhere"], "--tasks_dir=nowhere: no such directory"),
    (["--tasks_dir={inputs}/data.txt"], "data.txt: expected a directory, found a file"),
    (["--output={inputs}/data.txt"], "data.txt: expected a directory, found a file"),
]

MAD = [
    (["--seq_len=16"], "--seq_len=16: expected at least 18"),
    (["--seq_len=19"], "--seq_len=19: expected an even number"),
    (["--copied=0"], "--copied=0: expected at least 1"),
    (["--copying_len=16", "--copied=8"], "--copying_len=16: expected at least 17"),
    (["--compressed=1"], "--compressed=1: expected at least 2"),
    (
        ["--subtasks=compression", "--width=9", "--num_heads=1", "--models=delta_net"],
        "width=9: expected 'outer' and an even width",
    ),
]

FORMAL_LANGUAGES = [
    (["--max_length=7"], "--max_length=7: expected at least 8"),
    (["--long_length=19"], "--long_length=19: expected at least 20"),
    (["--train_strings=31"], "--train_strings=31: expected at least 32"),
    (["--test_strings=0"], "--test_strings=0: expected at least 1"),
    (
        ["--max_length=8", "--subtasks=parity"],
        "2100 strings of parity from 2 to 8: expected at most 254, all there are",
    ),
    (
        ["--max_length=8", "--subtasks=shuffle_2"],
        "2000 strings of shuffle_2 from 2 to 8: expected at most 274, all there",
    ),
]

BAD_FLAGS = {
    "language_model": LANGUAGE_MODEL,
    "compare": COMPARE,
    "context": CONTEXT,
    "generate": GENERATE,
    "stream": STREAM,
    "learn": LEARN,
    "ask": ASK,
    "subjects": SUBJECTS,
    "recall": RECALL,
    "parity": PARITY,
    "optimizers": OPTIMIZERS,
    "benchmark": BENCHMARK,
    "topology": TOPOLOGY,
    "faults": FAULTS,
    "report": [
        ([], "--workdirs: none given; expected workdirs of launchers"),
        (["--workdirs={inputs}"], "no config.json there; expected the workdir of a launcher that has results"),
        (["--workdirs={inputs}/nowhere"], "no config.json there"),
        (["--live", "--workdirs={inputs}"], "--workdirs: not with --live, which shows the run in --workdir"),
        (["--live"], "no config.json there; expected the workdir of a run that has begun"),
        (["--live", "--refresh=0"], "--refresh=0: expected 1 to 3600"),
    ],
    "continual.class_incremental": CLASS_INCREMENTAL,
    "continual.incorporate": INCORPORATE,
    "continual.new_languages": NEW_LANGUAGES,
    "evals.babilong": [
        *LONG_TEXT,
        (["--longest=4095"], "--longest=4095: expected at least 4096"),
        (["--length=10", "--longest=400"], "too few tokens for a story of qa1"),
    ],
    "evals.language": [
        *EVALS,
        (["--batch_size=9", "--subtasks=4096"], "--batch_size=9: expected at least 32, as many"),
    ],
    "evals.ablation": EVALS,
    "evals.levels": EVALS,
    "evals.few_shot": [*EVALS, (["--dimensions=2", "--subtasks=sparse_linear"], "dimensions=2: expected at least 3")],
    "evals.lm_eval": LM_EVAL,
    "evals.mad": [*EVALS, *MAD],
    "evals.formal_languages": [*EVALS, *FORMAL_LANGUAGES],
    "evals.niah": [
        *LONG_TEXT,
        (["--longest=1023"], "--longest=1023: expected at least 1024"),
        (["--length=90"], "length 90: task s_1 needs at least"),
        (["--tokenizer=bytes"], "length 256: task s_1 needs at least"),
        (["--subtasks=mk_3", "--length=150"], "length 150: task mk_3 needs at least"),
    ],
    "evals.recall": [*EVALS, (["--vocab_size=5"], "--vocab_size=5: expected at least 10 for pairs=4")],
}
