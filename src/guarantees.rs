//! What this driver promises to lose never, and the test behind each promise. Nothing but this page is here.
//!
//! "Claim" is a ResourceClaim that the kubelet has asked to prepare, "instance" a GPU instance with its compute instance.
//! The tests run with `cargo test`; the long ones go further with `DRA_SOAK=1`.
//!
//! | promise | test |
//! |---|---|
//! | Wherever the driver is killed, before or after any call of NVML, file operation or answer, in prepare, unprepare or the following start, its next start leaves no instance without a claim, no prepared claim without its instance, no CDI file and no state file of nobody; and the claim can be prepared and unprepared. | `tests/crash.rs`: `a_crash_at_any_point_loses_nothing_and_leaves_nothing` |
//! | The same where a call of NVML fails with any code, once or for good, before or after it has taken effect. An error names the device, what was tried and what to do. | `tests/faults`: `no_fault_of_the_library_loses_or_wedges_anything`; the codes that mean another driver: `tests/recovery.rs`: `a_call_that_finds_the_library_stale_has_it_opened_again_at_once` |
//! | The same where a call of NVML takes longer than the kubelet's call, alone, after a transient failure, or while another GPU of the claim fails. The call is answered in time, the work goes on to its end, and nothing is undone or forgotten under it; the next call finds the result. | `tests/faults`: `no_slow_call_of_the_library_loses_or_wedges_anything`; `tests/events.rs`: `a_prepare_that_takes_longer_than_its_call_goes_on_…` |
//! | A claim whose allocation is not what is on record gets what is allocated now, or an error that says what to do. What was answered in this boot stays until the kubelet unprepares it or the ResourceClaim is gone or not allocated any more. Without an API server the record counts. | `tests/recovery.rs`: `a_claim_that_is_allocated_other_devices_keeps_those_it_was_answered_until_it_is_unprepared`, `what_was_begun_for_an_earlier_allocation_gives_way_to_what_is_allocated_now`; `tests/random` |
//! | The same where any file operation fails: disk full, also in the middle of a write, read-only, EIO from fsync. Nothing half done is acknowledged. A full disk does not keep a GPU cut. | `tests/disk.rs`: `a_disk_that_fails_anywhere_leaves_nothing_half_done_and_wedges_no_claim` |
//! | The same in any order of prepares, unprepares, repetitions, restarts, kills, reboots, rolling updates with two processes, GPUs that hang and answer again, instances that an administrator creates or destroys, busy instances, API outages, forced deletions and reallocations; the other GPUs are served meanwhile. | `tests/random`: `whatever_happens_the_model_holds` |
//! | Under two hundred calls at once none is lost and none answered wrongly. | `tests/load.rs`: `two_hundred_calls_at_once_are_all_answered_rightly` |
//! | No bytes in a state file, a claim, a name, an answer of NVML, `ld.so.cache` or a capability file make the driver panic, hang, or leave its directories. | `tests/fuzz.rs` |
//! | A claim that nobody asks for any more is undone, finished or taken down, at the start and from time to time. | `tests/recovery.rs`: `a_half_prepared_claim_…`, `a_half_unprepared_claim_…`, `a_prepared_claim_whose_object_is_gone_or_another_one_is_taken_down` |
//! | One that cannot be taken down does not hold up the others. | `tests/recovery.rs`: `a_claim_that_cannot_be_taken_down_does_not_hold_up_the_others` |
//! | What an API server or a proxy says on a bad day takes nothing down. | `tests/recovery.rs`: `what_an_api_server_says_on_a_bad_day_takes_nothing_down` |
//! | After a reboot a claim gets the same devices, also without an API server. | `tests/recovery.rs`: `after_a_reboot_without_an_api_server_a_claim_gets_the_same_devices` |
//! | A state file that cannot be understood, of a newer driver for example, is kept aside, told as an event, and rebuilt; it never stops the driver. | `tests/recovery.rs`: `an_unreadable_state_file_is_an_event_of_the_node_and_no_crash`; `checkpoint`: `older_lines_do_not_speak_for_a_last_one_that_cannot_be_understood` |
//! | An instance that the driver did not make is never touched, also where claims are given it, and, but for what is said below, where it sits in the place of one of ours. | `tests/prepare.rs`: `an_instance_of_somebody_else_is_never_touched`; `tests/recovery.rs`: `an_instance_that_an_administrator_creates_where_a_crashed_prepare_was_about_to_…`, `…_creates_during_the_create_…`, `…_removed_and_created_again_is_not_destroyed`, `…_creates_behind_a_half_finished_unprepare_…`, `an_instance_that_is_gone_is_noticed_also_where_other_claims_have_the_gpu`; `tests/random`; `tests/existing.rs`; `tests/crash.rs` |
//! | A claim that was given such an instance gets this one or an error; until it gives it back, nobody else gets its place. | `tests/existing.rs`: `an_instance_that_vanishes_under_a_claim_…`, `another_instance_in_the_same_place_is_another_device` |
//! | No counter is published below what allocated devices of the pool consume, so that one claim never keeps kube-scheduler from the rest of the node: whatever unmanaged instances, the health of GPUs, flags, gates, layouts and restarts change, for one scheduler that sees the changes late and in order. | `layout::tests::transition`: `no_counter_is_ever_below_what_allocated_devices_consume`, `an_allocated_device_comes_back_…`, `of_two_allocated_devices_that_overlap_…`; `tests/scheduling.rs`: `an_unmanaged_instance_in_the_place_of_a_claim_stops_nothing_else_of_the_node`, also with a real kube-scheduler |
//! | Beside unmanaged instances the published devices and counters admit what the hardware has room for, on every model that the simulator has. | `tests/counters.rs`: `beside_unmanaged_instances_the_totals_stay_and_what_they_admit_is_what_the_hardware_admits` |
//! | A whole GPU and its parts or shares are never handed out together, whatever is published and whatever the scheduler says. | `tests/time_slices.rs` |
//! | A running tenant keeps its instance, whatever the scheduler gives to others. | `tests/recovery.rs`: `a_claim_on_a_placement_that_stays_held_fails_with_the_name_of_the_other_claim`; `tests/prepare.rs`: `a_claim_on_a_placement_that_is_still_held_waits_for_it` |
//! | An instance that somebody still uses is given up with the name of the process, and taken up where it was left. | `tests/recovery.rs`: `an_instance_in_use_is_given_up_…` |
//! | Two processes share the state of a node. Calls for a claim come one after the other, in the order in which they were made. | `tests/recovery.rs`: `two_processes_share_the_claims_of_a_node`, `calls_for_one_claim_come_one_after_the_other` |
//! | The first SIGTERM finishes what runs and closes NVML last; the second ends at once and loses nothing. | `tests/recovery.rs`: `the_first_sigterm_…`, `a_second_sigterm_…` |
//! | Nobody is given a free part of a sick or lost GPU, in any mode, also after a restart; what claims have of it stays as it is. | `tests/health.rs`: `an_xid_of_nobody_withdraws_what_is_free_and_taints_what_is_held`, `what_is_sick_stays_so_over_a_restart_until_an_operator_says_otherwise` |
//! | The same holds for a sick instance that somebody else made and that is adopted. | `tests/health.rs`: `a_sick_instance_of_somebody_else_is_not_offered_until_it_is_made_anew` |
//! | Listening to a GPU's errors keeps nobody from cutting it or making it whole. | `tests/health.rs`: `listening_never_keeps_a_gpu_from_being_cut_or_made_whole` |
//!
//! What is not promised:
//!
//! * NVML does not say who created an instance, and ids and UUIDs are used again. So an instance that an administrator
//!   creates with profile and placement of ours counts as ours in two cases: it has no compute instance, and was created
//!   while a prepare was at this very step, or between a crash there and the next start; or it has the id of ours, which
//!   the administrator destroyed, and the driver has not looked in between (it does so each `--rescan-interval`).
//! * Where state file, CDI file and ResourceClaim are all lost, what was made counts as somebody else's: it is withheld from
//!   the offers, or with `--existing-instances adopt` offered as it is, and stays until an administrator destroys it.
//! * A GPU that answers every call with GPU_IS_LOST is believed; should it come back without a reset, what was on it
//!   counts as somebody else's.
