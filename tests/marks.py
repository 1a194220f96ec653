"""What runs in ``make test``, and what only in ``make test-more``: rows of one kind beyond the first few."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest

more = pytest.mark.more
scaled = pytest.mark.scaled
ALL = bool(os.environ.get("FEDQ_ALL"))
"""Whether all rows of all tests are to run."""
MORE = bool(os.environ.get("FEDQ_MORE"))
"""Whether tests marked ``scaled`` are to do all that they know."""


def rows(all_: Iterable[Any], few: Collection[Any]) -> list[Any]:
    """Parameters of a test; those that are not among the few run in ``make test-more``."""
    return [row if row in few else pytest.param(row, marks=more) for row in all_]


def share(all_: Iterable[Any], each: int) -> Sequence[Any]:
    """Every ``each``-th of them, or all where ``make test-more`` runs; for tests marked ``scaled``."""
    return list(all_)[:: 1 if MORE else each]


LATER = frozenset(
    """
    test_two_users_play_the_page_and_see_what_it_shows
    test_a_result_whose_data_was_replaced_is_asked_for_again_on_what_is_there_now
    test_who_is_not_trusted_any_more_has_no_worker_no_answer_and_no_question_at_once
    test_where_nothing_is_up_untrusting_denies_too_and_trusting_again_says_so
    test_a_device_is_removed_after_asking_and_never_while_it_is_served
    test_the_record_has_the_full_text_of_a_failure_which_no_requester_sees
    test_a_one_hot_state_and_a_mask_that_came_along_are_flagged
    test_filters_print_their_count_and_never_decide_unasked
    test_the_word_for_the_next_question_on_the_same_is_said_once
    test_without_a_daemon_the_next_step_acts_on_a_word_and_approve_says_so
    test_the_same_again_says_what_was_said_before_and_a_graph_is_new_once
    test_what_was_answered_takes_no_second_word
    test_every_bad_input_is_told_in_words
    test_what_does_not_flow_into_a_value_but_decides_whether_it_comes_is_told_apart
    test_a_chain_of_calls_is_one_question
    test_a_message_that_was_not_read_yet_and_a_call_that_nobody_asks_for_are_counted
    test_an_owners_own_value_that_is_asked_for_is_a_question_without_a_plan
    test_what_expired_takes_no_word
    test_what_is_incomplete_says_what_it_misses_and_can_be_denied
    test_a_reference_that_two_requesters_use_decides_nothing_without_a_name
    test_ids_that_are_spelt_alike_stay_apart_while_a_real_worker_is_at_it
    test_another_result_and_a_derived_one_stay_after_a_release_and_a_kill_of_the_daemon
    test_a_call_on_two_private_values_runs_where_neither_was_alone
    test_a_replacement_while_an_approved_run_is_under_way_changes_nothing_of_it
    test_a_new_deadline_holds_on_a_device_that_is_up
    test_a_fold_without_an_end_is_ended_by_its_deadline_though_it_goes_on_and_on
    test_a_worker_that_is_stopped_passes_its_deadline_and_after_three_the_message_is_kept_apart
    test_independent_calls_of_one_requester_run_beside_each_other_and_chains_are_right
    test_a_device_that_may_not_delete_what_was_sent_works_all_the_same
    test_what_was_sent_is_listed_counted_and_collected
    test_what_is_cancelled_is_not_done_and_can_be_sent_again
    test_what_was_never_sent_is_refused_by_its_name
    test_get_says_for_whom_it_waits_and_prints_the_value_when_it_comes
    test_values_are_found_and_asked_for_before_the_device_was_ever_started
    test_a_value_is_written_as_the_suffix_says
    test_json_says_the_same_as_text
    test_data_is_replaced_and_removed
    test_what_a_carry_file_lacks_or_has_too_much_is_named
    test_words_that_can_not_be_are_refused_before_anything_is_sent
    test_a_fold_that_stops_says_at_which_step
    test_the_cost_follows_the_printed_form
    test_an_associative_scan_holds_for_the_size_it_was_built_with_and_is_refused_for_any_size
    test_the_carry_goes_on_in_a_second_fold_and_a_structure_is_kept
    test_progress_is_seen_by_whoever_waits_and_by_the_owner
    test_neither_gate_nor_worker_ever_holds_the_data
    test_a_call_that_ends_its_worker_three_times_is_an_error_and_blocks_nobody
    test_a_plan_that_is_built_in_the_file_is_written
    test_no_command_but_build_imports_torch
    test_a_token_that_was_denied_stands_until_it_is_asked_again
    test_an_owner_sees_what_is_held_and_lets_it_go_on
    test_at_a_terminal_review_asks_and_in_a_pipe_it_never_does
    test_no_allowed_op_kills_the_process_whatever_it_is_given
    test_under_cron_a_step_serves_for_a_while_what_comes_meanwhile_too
    test_attention_and_convolutions_are_counted
    test_a_gate_that_is_killed_four_times_in_mid_call_costs_the_call_nothing
    test_the_command_checks_on_what_the_plan_was_built_on
    test_another_requesters_calls_go_on_beside_a_worker_that_answers_at_random
    test_a_torch_that_is_changed_below_a_daemon_gets_no_call_and_when_it_is_back_all_goes_on
    test_an_owner_sees_what_a_requester_wrote_as_it_is
    test_an_argument_beyond_those_that_are_remembered_is_not_said_to_be_another_step
    test_a_process_that_ends_with_pointers_in_hand_ends_quietly
    test_the_log_of_the_process_is_there_as_before
    test_what_was_replaced_and_removed_is_in_the_record
    test_a_fold_tells_the_types_of_its_carry_and_of_its_metrics
    test_a_daemon_that_is_killed_and_started_again_is_no_copy
    test_every_logger_of_ours_makes_its_lines_visible
    """.split()
)
"""Tests of processes and waiting that run in ``make test-more`` alone; others show the same part in ``make test``."""

THIRDS = frozenset(
    """
    test_a_mistake_is_one_line_and_an_exit_code_and_the_same_as_json
    test_a_result_of_a_size_of_its_own_is_eagers_at_every_size_that_is_admitted
    test_a_seed_tells_what_is_drawn_as_it_does_in_eager
    test_what_to_write_instead_is_built_and_gives_what_torch_gives
    test_a_gradient_inside_a_function_is_eagers_at_other_sizes
    test_a_schedule_of_each_number_is_bit_for_bit_eagers_on_a_real_worker
    test_a_rate_that_is_a_tensor_is_bit_for_bit_eagers_with_the_number_that_it_holds
    test_writes_give_what_eager_gives_and_no_action_writes
    test_a_module_replays_as_eager_at_other_batch_sizes
    test_a_worker_gives_eagers_result_and_eagers_new_state
    test_statistics_of_instances_are_in_the_inputs_dtype_as_eagers_are
    test_the_statistics_a_layer_would_update_are_outputs
    test_killed_at_any_step_the_name_is_as_before_or_whole
    test_a_requester_killed_while_it_sends_finishes_at_its_next_start
    test_an_optimizer_that_chooses_by_its_own_numbers_takes_eagers_steps_in_a_worker_that_just_started
    test_a_function_that_treats_an_example_otherwise_than_a_devices_tensor_is_refused_and_the_cure_works
    test_it_replays_as_eager_at_other_sizes_values_and_dtypes
    test_a_send_that_met_a_full_disk_says_whether_it_will_go_out_and_it_is_so
    test_a_step_of_each_optimizer_is_eagers_from_the_first_on_and_on_a_real_worker
    test_a_cell_is_eagers_value_and_dtype_or_a_refusal_that_names_the_line
    test_a_frozen_parameter_that_the_optimizer_has_is_not_trained
    test_the_costliest_graphs_below_the_caps_stay_within_memory_bounds
    test_gradients_per_example_are_held_at_the_batch_size_they_are_built_with
    test_what_is_given_is_refused_alike_here_and_at_a_device
    test_a_part_of_the_batch_that_does_not_fit_is_named_and_none_of_torchs_text
    test_a_flipped_bit_under_a_new_signature_is_refused_or_read_consistently
    test_a_worker_that_is_killed_three_times_shows_only_after_an_approve
    test_a_random_function_replays_as_eager_or_is_refused
    test_a_step_of_each_model_is_eagers_at_other_batch_sizes_and_on_a_real_worker
    test_no_command_lets_a_devices_text_act_on_the_terminal
    test_another_users_home_is_not_served
    test_whatever_stops_init_at_whichever_step_again_makes_it_whole
    """.split()
)
"""Tests with many rows: of three, one runs in ``make test``, one in ``make test-more``, all in ``make test-all``."""


def put_off(items: Iterable[pytest.Item]) -> None:
    """Mark what is for ``make test-more``, by the two lists above."""
    seen: dict[str, int] = {}
    for item in items:
        name = getattr(item, "originalname", item.name)
        seen[name] = seen.get(name, -1) + 1
        if name in LATER or (name in THIRDS and seen[name] % 3):
            item.add_marker(more)
        if name in THIRDS and seen[name] % 3 == 2 and not ALL:
            item.add_marker(pytest.mark.skip(reason="make test-all runs all rows"))
