//! The list of faults, row by row, with the tests that show what becomes of each. `-` stands for what has no test yet,
//! with the reason.

use std::fs;
use std::path::Path;

const ROWS: &[(u32, &str, &[&str])] = &[
    (1, "main killed", &["killed::main"]),
    (2, "main killed at its k-th call", &["killed_anywhere::nothing_is_left_behind"]),
    (3, "monitor killed while its generation starts", &["killed::a_starting_monitor"]),
    (4, "serving monitor killed", &["killed::the_serving_monitor"]),
    (5, "worker killed, queue full", &["killed::any_worker", "killed::every_worker_at_once_and_connections_wait"]),
    (6, "logger killed", &["logs::no_line_is_lost_or_doubled_if_the_logger_is_killed_and_the_file_moved_20_times"]),
    (7, "main stopped", &["endurance::a_stopped_main_hinders_neither_traffic_nor_respawns"]),
    (8, "monitor stopped", &["endurance::a_stopped_monitor_is_told_of_and_does_not_hold_up_a_reload"]),
    (
        9,
        "worker stopped",
        &[
            "output::a_worker_that_is_stopped_is_shown_and_told_of",
            "watchdog::who_was_stopped_at_a_terminal_is_left_alone_and_whoever_hangs_is_not",
        ],
    ),
    (10, "killed between fork and exec", &["resources::a_child_that_is_killed_before_its_exec_is_a_failed_start"]),
    (11, "wedged before exec", &["hindered::a_program_that_cannot_be_looked_at_hinders_its_own_slot_only"]),
    (12, "program missing", &["bad_release::a_missing_program"]),
    (13, "not executable", &["bad_release::a_program_that_is_not_executable"]),
    (14, "no format, no interpreter", &["bad_release::an_empty_program", "bad_release::a_missing_interpreter"]),
    (15, "text file busy", &["resources::a_program_that_is_being_written_is_tried_for_a_while_and_then_refused"]),
    (16, "replaced in mid-reload", &["releases::a_script_that_was_replaced_is_run_and_the_mix_is_told"]),
    (17, "directory deleted", &["releases::a_directory_that_is_gone_is_a_failed_reload_until_it_is_back"]),
    (18, "symlink switched", &["releases::a_symlink_is_followed_anew_by_a_reload_and_not_by_a_respawn"]),
    (19, "exits 0 at once", &["bad_release::a_program_that_exits_with_success"]),
    (
        20,
        "fork EAGAIN",
        &[
            "resources::a_worker_that_cannot_be_forked_is_tried_again_with_a_delay",
            "resources::a_reload_for_which_nothing_can_be_forked_fails_and_the_next_one_works",
        ],
    ),
    (
        21,
        "EMFILE",
        &[
            "control::with_few_descriptors_a_crowd_leaves_enough_for_a_reload",
            "hindered::a_monitor_that_lacks_descriptors_to_be_started_leaks_none",
            "resources::workers_whose_output_finds_no_descriptor_are_told_of_and_harm_nobody_else",
        ],
    ),
    (
        22,
        "ENFILE, ENOMEM",
        &[
            "resources::what_the_whole_system_lacks_fails_a_reload_and_passes",
            "resources::a_client_that_cannot_be_accepted_is_accepted_once_it_can",
            "messages::no_order_gets_lost_for_want_of_memory",
        ],
    ),
    (
        23,
        "log disk full",
        &[
            "logs::hindered::what_a_full_disk_had_no_room_for_is_written_once_there_is_room",
            "logs::a_full_disk_never_makes_a_worker_wait",
            "logs::dropped_lines_are_counted_exactly",
        ],
    ),
    (24, "log EIO", &["logs::hindered::a_disk_that_fails_for_a_while_loses_no_line"]),
    (25, "pid file cannot be written", &["pid_file::one_that_cannot_be_written_is_an_error_before_anything_starts"]),
    (
        26,
        "log pipe full",
        &["logs::hindered::a_logger_that_was_stopped_goes_on_and_one_that_stays_so_is_killed_in_the_end"],
    ),
    (
        27,
        "log deleted or moved",
        &[
            "logs::places::each_signal_that_reopens_logs_opens_them_anew",
            "shown_logs::lines_are_followed_over_rotation_moving_and_reopening_until_panzer_ends",
        ],
    ),
    (28, "worker out of memory", &["out_of_memory::that_memory_ran_out_is_told_as_such"]),
    (30, "signal storm", &["endurance::a_storm_of_signals_coalesces_and_is_survived"]),
    (31, "USR1 during a reload", &["releases::reloads_that_are_asked_for_during_a_reload_become_one"]),
    (32, "reload after a failed reload", &["hooks::a_failed_test_before_a_reload_rejects_it_with_its_last_lines"]),
    (33, "TERM during a reload", &["stopping::a_stop_during_a_reload_ends_both_generations"]),
    (34, "INT after TERM", &["stopping::a_second_int_makes_it_quick"]),
    (35, "masks and ignores inherited", &["clean_worker::signals_are_as_a_program_expects_them"]),
    (36, "SIGPIPE", &["control::garbage_is_an_error_and_disturbs_nobody"]),
    (
        37,
        "terminal closed",
        &[
            "stopping::a_terminal_that_is_closed_ends_it_gracefully",
            "daemon::a_terminal_that_is_closed_is_nothing_to_a_daemon",
        ],
    ),
    (38, "Ctrl-C to the whole group", &["stopping::a_ctrl_c_reaches_panzer_only"]),
    (39, "Ctrl-Z, fg", &["output::what_a_terminal_stops_is_told_with_its_remedy"]),
    (40, "scale, then reload", &["scaling::the_count_holds_over_a_reload_and_the_death_of_the_monitor"]),
    (41, "never ready", &["bad_release::a_program_that_is_never_ready"]),
    (42, "ready, then dies", &["bad_release::a_program_that_dies_after_it_was_ready"]),
    (43, "readiness from a stranger", &["told_ready::a_stranger_is_not_believed"]),
    (44, "slow start", &["told_ready::a_worker_may_ask_for_more_time"]),
    (45, "ignores TERM", &["stopping::the_schedule_is_kept_to_its_end"]),
    (46, "stop while a slot is in backoff", &["stopping::a_stop_while_a_slot_waits_for_its_respawn_starts_nothing"]),
    (47, "reload, scale and stop at once", &["sim::histories_keep_every_invariant"]),
    (48, "wall clock", &["tidy::states_are_pure"]),
    (49, "suspend", &["watchdog::a_monitor_or_a_main_that_was_stopped_raises_no_alarm"]),
    (50, "reload pile-up", &["limits::of_many_generations_with_long_connections_the_oldest_are_hastened"]),
    (51, "pid reuse", &["sim::histories_keep_every_invariant", "kin::a_group_or_a_session_says_whose_a_process_is"]),
    (52, "stale pid file", &["pid_file::a_stale_one_is_taken_over"]),
    (53, "two instances", &["pid_file::of_many_that_start_at_once_one_wins"]),
    (54, "lock held by a child", &["clean_worker::there_is_no_descriptor_but_the_documented"]),
    (55, "live but slow control socket", &["control::a_control_socket_that_is_taken_is_an_error"]),
    (56, "address in use", &["sockets::an_address_in_use_names_who_has_it"]),
    (57, "unix socket path", &["sockets::a_unix_path_is_made_replaced_and_removed"]),
    (58, "abstract, dual stack", &["sockets::a_port_alone_is_both_families"]),
    (59, "descriptor leak", &["endurance::many_reloads_leak_no_descriptor"]),
    (60, "a grandchild holds the port", &["left_behind::a_child_that_keeps_the_listener_is_ended_by_a_stop"]),
    (61, "socket mode", &["sockets::a_unix_path_has_the_mode_and_the_group_that_were_asked_for"]),
    (62, "PID 1", &["managed::as_pid_1_it_reaps_whatever_comes_and_obeys"]),
    (63, "worker daemonizes", &["left_behind::a_program_that_goes_to_the_background_is_noticed_and_ended"]),
    (64, "worker killed, has children", &["left_behind::the_group_of_a_killed_worker_is_ended"]),
    (66, "environment leak", &["clean_worker::the_environment_holds_what_is_documented_and_no_more"]),
    (67, "control fuzz", &["control::garbage_is_an_error_and_disturbs_nobody", "properties::requests_and_answers"]),
    (68, "slow clients", &["control::many_silent_clients_keep_nobody_out"]),
    (69, "foreign uid", &["control::another_user_is_refused"]),
    (70, "forged sd_notify", &["told_ready::a_stranger_is_not_believed"]),
    (71, "notify flood", &["resources::a_flood_of_one_worker_hides_no_others_word"]),
    (72, "YAML bomb", &["file::a_bomb_is_refused_at_its_first_anchor"]),
    (73, "bad numbers", &["bad_input::numbers", "properties::numbers"]),
    (74, "arguments that are not UTF-8", &["clean_worker::arguments_pass_byte_for_byte"]),
    (75, "order of dropping rights", &["identity::rights_go_in_the_right_order"]),
    (76, "symlinked pid file, log", &["pid_file::a_symlink_is_not_followed", "logs::a_symbolic_link_is_not_followed"]),
    (78, "re-exec into a broken binary", &["restart::a_build_that_cannot_take_over_is_refused_with_the_cause"]),
    (79, "version skew", &["restart::a_hundred_restarts_by_two_builds_under_load_disturb_nobody"]),
    (80, "descriptor numbering", &["restart::few_descriptors_and_scattered_ones_do"]),
    (81, "worker dies during re-exec", &["restart::who_dies_meanwhile_is_reaped_and_replaced"]),
    (
        82,
        "seccomp notify",
        &[
            "sharing::a_worker_killed_in_mid_call_leaves_nothing_stuck",
            "sharing::a_monitor_killed_in_mid_call_leaves_nothing_stuck",
        ],
    ),
    (83, "mold stuck or dead", &["molds::workers_serve_on_without_their_mold_and_another_is_loaded"]),
];

/// Whether some file below `folder` has a test of this name.
fn has_test(folder: &Path, name: &str) -> bool {
    fs::read_dir(folder).unwrap().flatten().any(|entry| {
        let path = entry.path();
        match path.extension() {
            _ if path.is_dir() => has_test(&path, name),
            Some(ending) if ending == "rs" => fs::read_to_string(&path).unwrap().contains(&format!("fn {name}(")),
            _ => false,
        }
    })
}

#[test]
fn each_row_names_tests_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (number, fault, tests) in ROWS {
        for test in tests.iter().filter(|test| !test.starts_with('-')) {
            let name = test.rsplit("::").next().unwrap();
            let is_there = ["tests", "src"].iter().any(|folder| has_test(&root.join(folder), name));
            assert!(is_there, "row {number} ({fault}): there is no test {test}");
        }
    }
    assert!(ROWS.windows(2).all(|pair| pair[0].0 < pair[1].0), "the rows are in their order");
}
