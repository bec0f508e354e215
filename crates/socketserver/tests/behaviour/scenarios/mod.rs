//! The scenarios, each of which runs on every combination of transport and model.

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

/// Lists the scenarios of each module by the names of their functions.
macro_rules! scenarios {
    ($($module:ident { $($name:ident,)+ })+) => {
        pub const SCENARIOS: &[Scenario] = &[$($(
            Scenario { name: stringify!($name), run: $module::$name },
        )+)+];
    };
}

scenarios! {
    echo {
        echo_returns_each_line,
        reported_address_is_the_bound_one,
        closed_server_leaves_nothing_behind,
        events_and_hooks_run_in_order,
        requests_run_in_the_thread_or_process_of_the_model,
        sequential_server_serves_one_request_at_a_time,
        concurrent_server_serves_many_requests_at_a_time,
        half_closed_client_receives_its_reply,
        unread_input_does_not_destroy_the_reply,
        large_write_survives_signals_and_a_slow_reader,
    }
    failures {
        handler_failure_ends_only_its_request,
        second_failure_is_reported_but_not_handled,
    }
    hooks {
        rejected_client_gets_no_handler,
        failing_hooks_do_not_stop_the_server,
        service_actions_run_between_requests,
        handle_request_serves_one_request,
        handle_request_times_out,
        handle_request_returns_on_shutdown_and_drain,
    }
    stopping {
        idle_server_stops_and_serves_again,
        shutdown_before_serving_ends_the_first_round,
        handler_can_stop_the_server,
        shutdown_does_not_end_active_requests,
        drop_does_not_wait_for_active_requests,
        server_that_never_served_closes,
    }
    draining {
        idle_server_drains_at_once,
        handler_can_drain_the_server,
        drain_lets_active_requests_finish,
        drain_closes_the_listener_at_once,
        drain_serves_the_backlog,
        drain_with_zero_timeout_rejects_the_backlog,
        drain_cancels_requests_at_its_deadline,
        close_drains_the_backlog,
        close_abandons_a_stuck_handler_at_its_timeout,
    }
    limits {
        next_request_waits_at_the_limit,
        next_request_is_rejected_at_the_limit,
        server_stops_at_the_limit,
    }
    packets {
        empty_datagram_is_a_request,
        only_the_handler_replies_to_a_datagram,
        oversized_datagram_is_flagged_and_counted,
        datagrams_of_every_size_arrive_whole,
        reply_to_an_unnamed_peer_fails,
        reply_to_a_peer_that_does_not_read_times_out,
        peer_that_reads_late_receives_every_reply,
    }
    udp {
        replies_come_from_the_requested_address,
        ipv6_replies_come_from_the_requested_address,
        replies_are_limited_until_the_peer_is_validated,
        low_source_ports_are_rejected_without_a_handler,
        kernel_drops_are_counted,
    }
    timeouts {
        slow_request_ends_at_the_request_timeout,
        silent_peer_ends_at_the_read_and_idle_timeouts,
        peer_that_does_not_read_ends_at_the_write_timeout,
    }
    hostile {
        disconnected_peer_is_not_a_handler_error,
        server_survives_five_hundred_misbehaving_clients,
    }
    forking {
        exit_codes_are_0_and_1,
        foreign_child_stays_waitable,
        child_holds_no_descriptor_of_its_parent,
        killed_child_ends_only_its_request,
        children_ignore_signals_to_the_process_group,
        children_that_ignore_cancellation_are_killed,
        serving_with_other_threads_is_rejected,
        children_end_with_their_server,
    }
}
