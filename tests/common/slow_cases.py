"""Tests that are slow by their time, beside those that are marked in their files.

Each takes 2 to 22 seconds of a core. For most of them a cheaper form of the same claim is in the fast suite, or a test
of the whole that contains it. So README's test command takes some eight minutes on two cores. ``.ci/run`` runs all.
"""

# By file: beginnings of the names of tests with their parameters; an empty one is the whole file.
SLOW_CASES: dict[str, tuple[str, ...]] = {
    "tests/data/test_document_boundaries.py": (
        "test_a_run_of_fit[attention]",
        "test_a_training_step_leaves_the_padding_out[delta_net]",
        "test_another_document_changes_a_documents_losses_only_where_they_are_carried[delta_net]",
    ),
    "tests/evaluation/test_streamed.py": (
        "test_parts_of_all_sizes_are_read[delta_net-16]",
        "test_parts_of_all_sizes_are_read[delta_net-17]",
        "test_parts_of_all_sizes_are_read[delta_net-1]",
        "test_the_logits_are_those_of_reading_all_at_once[delta_net]",
        "test_the_logits_are_those_of_reading_all_at_once[online]",
    ),
    "tests/launchers/test_benchmark.py": (
        "test_compile_by_depth",
        "test_gradients",
        "test_mixers_measures_everything",
        "test_pretrained",
        "test_remat_by_policy",
        "test_scaling_fits_exponents",
    ),
    "tests/launchers/test_benchmark_gpu.py": ("",),
    "tests/launchers/test_class_incremental.py": (
        "test_a_learner_of_texts_stores_its_share_and_answers_among_the_labels_seen",
    ),
    "tests/launchers/test_eval_subtasks.py": ("test_levels_read_the_next_symbols_and_never_the_labels",),
    "tests/launchers/test_incorporate.py": (
        "test_a_given_text_is_read_and_asked",
        "test_levels_see_protected_texts_once_and_learn_as_if_each_time",
    ),
    "tests/launchers/test_launcher_table.py": (
        "test_a_run_that_was_killed_goes_on_to_the_same_figures[parity]",
        "test_a_workdir_of_something_else_is_left_alone[benchmark pretrained]",
        "test_the_same_command_prints_again_and_other_flags_are_refused[evals.recall]",
    ),
    "tests/launchers/test_learn.py": ("test_a_model_asks_itself_once_and_learns_its_answers",),
    "tests/launchers/test_new_languages.py": (
        "test_each_language_is_learned_alone_and_b_after_a",
        "test_given_languages_are_learned_one_after_the_other",
        "test_what_is_protected_is_known_when_b_is_learned",
    ),
    "tests/launchers/test_optimizers_continual.py": ("test_continual",),
    "tests/launchers/test_optimizers_training.py": ("",),
    "tests/launchers/test_subjects.py": ("test_reading_in_calls_is_one_pass[16]",),
    "tests/levels/test_devices.py": ("test_eight_devices_give_the_state_of_one",),
    "tests/levels/test_transfer.py": (
        "test_maml_learns_sines[False]",
        "test_maml_learns_sines[True]",
    ),
    "tests/memory/test_bounds.py": (
        "test_a_chunk_brings_answers_nearer_to_their_values",
        "test_gradients_of_the_defaults_stay_small_on_repeated_text",
    ),
    "tests/models/test_auto_encoder.py": ("test_it_learns",),
    "tests/models/test_in_context.py": (
        "test_a_nested_level_gets_the_exact_gradient_of_where_faster_ones_start[periods0-attention]",
        "test_causality[attention]",
        "test_states_can_be_donated[nested]",
        "test_states_can_be_donated[sequential]",
        "test_states_keep_their_dtypes[independent-meta-delta_net]",
        "test_states_keep_their_dtypes[nested-meta-delta_net]",
        "test_states_keep_their_dtypes[nested_first_order-meta-delta_net]",
        "test_states_keep_their_dtypes[sequential-meta-delta_net]",
        "test_states_keep_their_dtypes[sequential-online-attention]",
    ),
    "tests/models/test_models.py": (
        "test_layers_written_out_are_those_of_a_scan[delta_net]",
        "test_program_does_not_grow_with_depth[hope]",
    ),
    "tests/models/test_precision.py": (
        "test_a_text_in_calls_is_a_text_in_one[delta_net]",
        "test_loss_and_gradients_are_close_to_those_in_float32[delta_net]",
        "test_training_follows_that_in_float32[delta_net]",
        "test_types[atlas]",
        "test_types[meta, sequential]",
    ),
    "tests/models/test_scores_learn.py": (
        "test_every_score_is_of_the_logits_that_learn",
        "test_recall_after_other_text_learns_it",
    ),
    "tests/modules/test_atlas.py": ("test_the_sum_of_a_chunks_updates_is_orthogonal_when_it_ends",),
    "tests/modules/test_blocks.py": (
        "test_a_text_in_parts[hope]",
        "test_attention_is_the_same_at_any_split[64-False]",
    ),
    "tests/modules/test_kernel.py": (
        "test_extreme_inputs_give_no_nan[comba]",
        "test_a_chunk_in_a_kernel_is_a_chunk_of_the_scan[titans]",
        "test_outputs_state_and_gradients_are_those_of_the_scan[gated_delta_net-interpret]",
    ),
    "tests/modules/test_mixer_table.py": (
        "test_derivatives_of_second_order_can_be_traced[rwkv7]",
        "test_derivatives_of_second_order_can_be_traced[srwm]",
        "test_forward_mode_equals_reverse_mode_and_finite_differences[delta_net]",
    ),
    "tests/modules/test_mixers.py": (
        "test_causal_and_the_same_one_by_one_and_in_parts[atlas-options14]",
        "test_causal_and_the_same_one_by_one_and_in_parts[self_modifying_titans-options16]",
    ),
    "tests/modules/test_quantized.py": ("test_a_model_reads_as_with_the_weights_that_it_has",),
    "tests/modules/test_self_modifying_titans.py": ("test_any_split_gives_the_same[split3-4-8]",),
    "tests/ops/test_chunk_scan.py": ("test_values_and_gradients_are_those_of_a_loop",),
    "tests/ops/test_in_kernel.py": (
        "test_a_solution",
        "test_decay",
    ),
    "tests/optim/test_deep_momentum.py": (
        "test_equals_the_equation[{'share': 'parameter', 'hidden': (5,), 'seed': 3}]",
        "test_trains_a_model",
    ),
    "tests/optim/test_optimizers.py": ("test_sharded_parameters",),
    "tests/parallel/test_mesh.py": ("test_cores_as_devices[(8, , , 4, [])]",),
    "tests/parallel/test_sequence.py": (
        "test_devices_that_share_a_text_read_it_as_one_does[attention]",
        "test_devices_that_share_a_text_read_it_as_one_does[kernel]",
    ),
    "tests/parallel/test_sharding.py": ("test_eight_devices_give_the_run_of_one[transformer]",),
    "tests/parallel/test_weak_scaling.py": (
        "test_a_mesh_of_the_users_own_is_left_to_the_partitioner[data]",
        "test_a_mesh_of_the_users_own_is_left_to_the_partitioner[x]",
        "test_temporaries_of_a_device_do_not_grow_with_the_mesh[delta_net-outer]",
    ),
    "tests/pretrained/test_features.py": ("test_means_are_those_of_each_text_alone[2]",),
    "tests/pretrained/test_level_stacking.py": (
        "test_a_chunk_is_read_as_by_the_model_with_what_was_learned_before[3]",
        "test_bounded",
        "test_only_the_meta_regime_lets_gradients_through_updates[gradient_descent]",
        "test_only_the_meta_regime_lets_gradients_through_updates[preconditioned]",
        "test_with_learning_rates_of_0_the_logits_are_those_of_the_model[True-adam]",
        "test_with_learning_rates_of_0_the_logits_are_those_of_the_model[True-gradient_descent]",
        "test_with_learning_rates_of_0_the_logits_are_those_of_the_model[True-preconditioned]",
    ),
    "tests/pretrained/test_llama_family.py": ("test_any_split_of_a_text_gives_the_same_logits[qwen2]",),
    "tests/streaming/test_answers.py": (
        "test_the_likeliest_is_that_of_all_answers[0-delta_net]",
        "test_the_likeliest_is_that_of_all_answers[71-delta_net]",
    ),
    "tests/streaming/test_continual_learner.py": (
        "test_answers_are_predicted_and_written[]",
        "test_importance_is_the_mean_squared_gradient_of_each_example",
        "test_many_batches_are_learned_as_one_after_the_other",
        "test_what_stands_before_is_read_and_not_learned",
    ),
    "tests/streaming/test_decoding.py": (
        "test_a_long_prefix_that_slid_through_the_state_is_there_whole",
        "test_logits_are_those_of_one_reading[grouped]",
        "test_logits_are_those_of_one_reading[one head of keys]",
        "test_logits_are_those_of_one_reading[plain]",
        "test_logits_are_those_of_one_reading[Qwen]",
        "test_logits_are_those_of_one_reading[scaled]",
    ),
    "tests/streaming/test_questions.py": (
        "test_protected_texts_are_not_learned_and_keep_their_answers",
        "test_a_prefix_is_what_stands_before",
    ),
    "tests/streaming/test_sampling.py": (
        "test_one_token_to_draw_from_is_the_likeliest_for_models_and_streams[online]",
        "test_room_for_the_text_alone_changes_nothing",
        "test_temperature_comes_before_the_cut",
    ),
    "tests/streaming/test_stream.py": (
        "test_a_saved_stream_is_the_same_learner",
        "test_a_stream_in_bfloat16",
        "test_feeding_is_reading_and_learning_however_cut",
        "test_one_program_for_all_chunks_of_a_restored_model",
    ),
    "tests/streaming/test_together.py": (
        "test_continuations_are_those_of_each_prompt_alone[memory]",
        "test_likelihoods_depend_neither_on_the_batch_nor_on_pieces[8-3-in_context]",
        "test_likelihoods_depend_neither_on_the_batch_nor_on_pieces[8-3-memory]",
    ),
    "tests/test_docstrings.py": (
        "test_examples_run[nl_jax.evaluation.streamed]",
        "test_examples_run[nl_jax.models.language_model]",
        "test_examples_run[nl_jax.models.reading]",
        "test_examples_run[nl_jax.modules.blocks]",
        "test_examples_run[nl_jax.pretrained.level_stacking]",
        "test_examples_run[nl_jax.streaming.continual_learner]",
        "test_examples_run[nl_jax.streaming.stream]",
        "test_examples_run[nl_jax.training.in_memory]",
    ),
    "tests/test_how_to.py": (
        "test_the_snippet_for_users_of_nested_learning_learns_while_it_reads",
        "test_the_snippet_for_users_of_titans_pytorch_gives_the_same_in_two_calls",
    ),
    "tests/test_readme.py": (
        "test_every_command_gets_past_all_checks[evals.ablation:",
        "test_every_command_gets_past_all_checks[evals.formal_languages:",
        "test_every_command_gets_past_all_checks[evals.language:",
        "test_every_command_gets_past_all_checks[evals.levels:",
        "test_every_command_gets_past_all_checks[evals.mad:",
        "test_every_command_gets_past_all_checks[evaluations:",
        "test_the_learner_of_the_example_learns_and_is_saved",
    ),
    "tests/test_zero_gradients.py": ("test_meta_gradients_of_chunks_without_targets[sequential]",),
    "tests/training/test_accumulation.py": (
        "test_memory_falls",
        "test_microbatches_give_the_step_of_the_batch[attention-True]",
    ),
    "tests/training/test_in_memory.py": (
        "test_a_model_learns_and_one_seed_gives_one_run",
        "test_observed_memories_are_those_of_the_model",
    ),
    "tests/training/test_observability.py": (
        "test_the_norm_of_what_memories_have_learned[1]",
        "test_the_norm_of_what_memories_have_learned[2]",
    ),
    "tests/training/test_training_schedule.py": (
        "test_a_step_is_what_one_transformation_does[adamw]",
        "test_a_step_is_what_one_transformation_does[m3]",
        "test_any_transformation_moves_all_parameters_as_one_level",
        "test_every_optimizer_trains[adamuon]",
        "test_every_optimizer_trains[adamw]",
        "test_every_optimizer_trains[deep_momentum]",
        "test_every_optimizer_trains[delta_momentum]",
        "test_every_optimizer_trains[momentum]",
        "test_every_optimizer_trains[muon]",
        "test_every_optimizer_trains[m3]",
    ),
}
