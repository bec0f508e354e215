//! The scenarios: what is proven on each combination of transport and model.

mod draining;
mod echo;
mod failures;
mod forking;
mod hooks;
mod hostile;
mod limits;
mod packets;
mod stopping;
mod timeouts;
mod udp;

use crate::matrix::Combination;

pub struct Scenario {
    pub name: &'static str,
    pub run: fn(Combination),
}

/// The scenarios of each module, by the names of their functions.
macro_rules! scenarios {
    ($($module:ident { $($name:ident,)+ })+) => {
        pub const SCENARIOS: &[Scenario] = &[$($(
            Scenario { name: stringify!($name), run: $module::$name },
        )+)+];
    };
}

scenarios! {
    echo {
        three_rounds,
        the_reported_address_is_the_bound_one,
        nothing_is_left_at_the_end,
        the_order_of_a_request,
        requests_run_where_the_model_says,
        one_at_a_time,
        many_at_a_time,
        half_close_still_gets_the_answer,
        unread_input_does_not_destroy_the_answer,
        a_large_write_survives_signals_and_a_slow_reader,
    }
    failures {
        a_failure_stays_with_its_request,
        a_second_failure_is_told_and_not_handled,
    }
    hooks {
        who_is_not_verified_gets_no_handler,
        hooks_that_fail_do_no_harm,
        service_actions_run_between_requests,
        handle_request_handles_one,
        handle_request_times_out,
        handle_request_is_stopped,
    }
    stopping {
        an_idle_server_stops_and_serves_again,
        a_stop_before_serving_holds,
        a_stop_from_a_handler,
        a_stop_leaves_live_requests_alone,
        a_drop_waits_for_nothing,
        a_server_that_never_served_closes,
    }
    draining {
        an_idle_server_drains,
        a_drain_from_a_handler,
        a_drain_lets_live_requests_finish,
        a_drain_refuses_new_clients,
        a_drain_serves_the_backlog,
        a_drain_without_time_refuses_the_backlog,
        a_drain_cuts_at_its_deadline,
        a_close_is_a_drain,
        a_close_leaves_a_stuck_handler_behind,
    }
    limits {
        at_the_limit_the_next_waits,
        at_the_limit_the_next_is_rejected,
        a_stop_is_answered_at_the_limit,
    }
    packets {
        an_empty_datagram_is_a_request,
        nothing_is_replied_unless_the_handler_does,
        an_oversized_datagram_is_flagged_and_counted,
        datagrams_of_every_size_arrive_whole,
        an_unnamed_peer_cannot_be_answered,
        a_datagram_peer_that_does_not_read_times_the_reply_out,
        a_datagram_peer_that_reads_late_gets_every_reply,
    }
    udp {
        answers_come_from_the_address_that_was_asked,
        ipv6_answers_do_as_well,
        replies_are_limited_until_the_peer_is_validated,
        low_ports_are_refused_before_a_handler_is_made,
        what_the_kernel_drops_is_counted,
    }
    timeouts {
        a_trickle_is_cut_by_the_request_deadline,
        silence_is_cut_by_the_read_and_idle_timeouts,
        a_peer_that_does_not_read_is_cut_by_the_write_timeout,
    }
    hostile {
        a_peer_that_goes_away_is_no_error,
        five_hundred_clients_that_misbehave,
    }
    forking {
        exit_codes_are_0_and_1,
        a_foreign_child_stays_waitable,
        a_child_owns_nothing_of_its_parent,
        a_killed_child_ends_only_its_request,
        a_signal_to_the_whole_group_is_for_the_parent,
        children_that_ignore_the_signal_end_at_the_deadline,
        serving_with_threads_running_is_refused,
        children_of_a_dead_server_end,
    }
}
