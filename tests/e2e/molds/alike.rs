//! Tests of executed workers, run once more with workers that a mold has forked.

use crate::faults::{endurance, killed, releases, respawn, stopping};
use crate::support::as_mold;
use crate::{my_app, per_worker, recycling, restart, scaling, surge, zero_loss};

macro_rules! as_molds {
    ($($module:ident::$test:ident)*) => {
        $(
            mod $test {
                #[test]
                fn of_a_mold() {
                    super::as_mold(super::$module::$test);
                }
            }
        )*
    };
}

as_molds! {
    killed::any_worker
    killed::every_worker_at_once_and_connections_wait
    killed::the_serving_monitor
    killed::the_serving_monitor_whose_workers_ignore_the_first_signal
    killed::main
    killed::main_while_its_workers_drain_and_a_new_one_waits_for_them
    releases::a_symlink_is_followed_anew_by_a_reload_and_not_by_a_respawn
    releases::so_is_one_in_the_directory_it_was_started_in_and_a_new_monitor_stays_with_it
    respawn::after_a_healthy_life_it_is_immediate
    respawn::the_first_death_of_a_ready_worker_is_respawned_at_once_and_the_next_one_is_paced
    stopping::each_stop_signal_ends_everything
    stopping::a_request_that_was_accepted_is_finished
    stopping::a_stop_during_a_reload_ends_both_generations
    endurance::a_stopped_main_hinders_neither_traffic_nor_respawns
    endurance::a_stopped_monitor_is_told_of_and_does_not_hold_up_a_reload
    scaling::the_workers_that_stay_are_left_alone
    scaling::the_count_holds_over_a_reload_and_the_death_of_the_monitor
    scaling::quiet_ends_all_and_a_reload_or_a_scale_brings_workers_back
    scaling::up_and_down_under_load_loses_nothing
    surge::one_by_one_under_load_there_is_never_one_too_few_nor_two_too_many
    surge::a_release_that_fails_on_the_way_gives_back_what_it_has
    restart::who_dies_meanwhile_is_reaped_and_replaced
    per_worker::what_waits_for_a_killed_worker_is_served_by_its_replacement
    recycling::whoever_has_run_for_long_is_replaced_and_no_request_is_lost
    recycling::the_queue_of_a_worker_passes_to_its_replacement
    my_app::a_request_under_way_is_answered_by_the_worker_that_took_it
    my_app::a_connection_that_was_accepted_before_it_asked_is_answered
    zero_loss::my_app_loses_nothing
}
