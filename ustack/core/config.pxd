# The sysctls: one struct, one table (layer 0).
#
# Each X() row gives the field, the Linux name, the position inside the sysctl's value (tcp_rmem has three), the default of
# the reference kernel (facts M; what Linux derives from memory is fixed here) and the permitted range. The C list makes
# the struct, its defaults and the name table that Python reads, so they cannot drift; the Cython declaration below names
# the fields for the core. All values are int64. String-valued sysctls (tcp_congestion_control, tcp_fastopen_key,
# ip_local_reserved_ports) live elsewhere in the engine. Times of effect are those of Linux (facts A2, L, M): whoever uses a value
# reads it at the moment Linux reads it. Written under the engine lock only.

from libc.stdint cimport int64_t

cdef extern from *:
    """
    #include <stddef.h>
    #define USTACK_SYSCTLS(X) \\
      X(tcp_abort_on_overflow, "net.ipv4.tcp_abort_on_overflow", 0, 0LL, 0LL, 255LL) \\
      X(tcp_adv_win_scale, "net.ipv4.tcp_adv_win_scale", 0, 1LL, -31LL, 31LL) \\
      X(tcp_app_win, "net.ipv4.tcp_app_win", 0, 31LL, 0LL, 31LL) \\
      X(tcp_autocorking, "net.ipv4.tcp_autocorking", 0, 1LL, 0LL, 1LL) \\
      X(tcp_backlog_ack_defer, "net.ipv4.tcp_backlog_ack_defer", 0, 1LL, 0LL, 1LL) \\
      X(tcp_base_mss, "net.ipv4.tcp_base_mss", 0, 1024LL, (-2147483647-1), 2147483647LL) \\
      X(tcp_challenge_ack_limit, "net.ipv4.tcp_challenge_ack_limit", 0, 2147483647LL, (-2147483647-1), 2147483647LL) \\
      X(tcp_child_ehash_entries, "net.ipv4.tcp_child_ehash_entries", 0, 0LL, 0LL, 16777216LL) \\
      X(tcp_comp_sack_delay_ns, "net.ipv4.tcp_comp_sack_delay_ns", 0, 1000000LL, 0LL, 9223372036854775807LL) \\
      X(tcp_comp_sack_nr, "net.ipv4.tcp_comp_sack_nr", 0, 44LL, 0LL, 255LL) \\
      X(tcp_comp_sack_slack_ns, "net.ipv4.tcp_comp_sack_slack_ns", 0, 100000LL, 0LL, 9223372036854775807LL) \\
      X(tcp_dsack, "net.ipv4.tcp_dsack", 0, 1LL, 0LL, 255LL) \\
      X(tcp_early_demux, "net.ipv4.tcp_early_demux", 0, 1LL, 0LL, 255LL) \\
      X(tcp_early_retrans, "net.ipv4.tcp_early_retrans", 0, 3LL, 0LL, 4LL) \\
      X(tcp_ecn, "net.ipv4.tcp_ecn", 0, 2LL, 0LL, 2LL) \\
      X(tcp_ecn_fallback, "net.ipv4.tcp_ecn_fallback", 0, 1LL, 0LL, 1LL) \\
      X(tcp_ecn_option, "net.ipv4.tcp_ecn_option", 0, 2LL, 0LL, 2LL) \\
      X(tcp_ecn_option_beacon, "net.ipv4.tcp_ecn_option_beacon", 0, 3LL, 0LL, 3LL) \\
      X(tcp_fack, "net.ipv4.tcp_fack", 0, 0LL, 0LL, 255LL) \\
      X(tcp_fastopen, "net.ipv4.tcp_fastopen", 0, 1LL, (-2147483647-1), 2147483647LL) \\
      X(tcp_fastopen_blackhole_timeout_sec, "net.ipv4.tcp_fastopen_blackhole_timeout_sec", 0, 0LL, 0LL, 2147483647LL) \\
      X(tcp_fin_timeout, "net.ipv4.tcp_fin_timeout", 0, 60LL, -8589934LL, 8589934LL) \\
      X(tcp_frto, "net.ipv4.tcp_frto", 0, 2LL, 0LL, 255LL) \\
      X(tcp_fwmark_accept, "net.ipv4.tcp_fwmark_accept", 0, 0LL, 0LL, 255LL) \\
      X(tcp_invalid_ratelimit, "net.ipv4.tcp_invalid_ratelimit", 0, 500LL, 0LL, 2147483647LL) \\
      X(tcp_keepalive_intvl, "net.ipv4.tcp_keepalive_intvl", 0, 75LL, -8589934LL, 8589934LL) \\
      X(tcp_keepalive_probes, "net.ipv4.tcp_keepalive_probes", 0, 9LL, 0LL, 255LL) \\
      X(tcp_keepalive_time, "net.ipv4.tcp_keepalive_time", 0, 7200LL, -8589934LL, 8589934LL) \\
      X(tcp_l3mdev_accept, "net.ipv4.tcp_l3mdev_accept", 0, 0LL, 0LL, 1LL) \\
      X(tcp_limit_output_bytes, "net.ipv4.tcp_limit_output_bytes", 0, 4194304LL, (-2147483647-1), 2147483647LL) \\
      X(tcp_max_orphans, "net.ipv4.tcp_max_orphans", 0, 131072LL, (-2147483647-1), 2147483647LL) \\
      X(tcp_max_reordering, "net.ipv4.tcp_max_reordering", 0, 300LL, 1LL, 2147483647LL) \\
      X(tcp_max_syn_backlog, "net.ipv4.tcp_max_syn_backlog", 0, 2048LL, (-2147483647-1), 2147483647LL) \\
      X(tcp_max_tw_buckets, "net.ipv4.tcp_max_tw_buckets", 0, 131072LL, (-2147483647-1), 2147483647LL) \\
      X(tcp_migrate_req, "net.ipv4.tcp_migrate_req", 0, 0LL, 0LL, 1LL) \\
      X(tcp_min_rtt_wlen, "net.ipv4.tcp_min_rtt_wlen", 0, 300LL, 0LL, 86400LL) \\
      X(tcp_min_snd_mss, "net.ipv4.tcp_min_snd_mss", 0, 48LL, 48LL, 65535LL) \\
      X(tcp_min_tso_segs, "net.ipv4.tcp_min_tso_segs", 0, 2LL, 1LL, 255LL) \\
      X(tcp_moderate_rcvbuf, "net.ipv4.tcp_moderate_rcvbuf", 0, 1LL, 0LL, 255LL) \\
      X(tcp_mtu_probe_floor, "net.ipv4.tcp_mtu_probe_floor", 0, 48LL, 48LL, 65535LL) \\
      X(tcp_mtu_probing, "net.ipv4.tcp_mtu_probing", 0, 0LL, 0LL, 255LL) \\
      X(tcp_no_metrics_save, "net.ipv4.tcp_no_metrics_save", 0, 0LL, 0LL, 255LL) \\
      X(tcp_no_ssthresh_metrics_save, "net.ipv4.tcp_no_ssthresh_metrics_save", 0, 1LL, 0LL, 1LL) \\
      X(tcp_notsent_lowat, "net.ipv4.tcp_notsent_lowat", 0, 4294967295LL, 0LL, 4294967295LL) \\
      X(tcp_orphan_retries, "net.ipv4.tcp_orphan_retries", 0, 0LL, 0LL, 255LL) \\
      X(tcp_pacing_ca_ratio, "net.ipv4.tcp_pacing_ca_ratio", 0, 120LL, 0LL, 1000LL) \\
      X(tcp_pacing_ss_ratio, "net.ipv4.tcp_pacing_ss_ratio", 0, 200LL, 0LL, 1000LL) \\
      X(tcp_pingpong_thresh, "net.ipv4.tcp_pingpong_thresh", 0, 1LL, 1LL, 255LL) \\
      X(tcp_plb_cong_thresh, "net.ipv4.tcp_plb_cong_thresh", 0, 128LL, 0LL, 256LL) \\
      X(tcp_plb_enabled, "net.ipv4.tcp_plb_enabled", 0, 0LL, 0LL, 1LL) \\
      X(tcp_plb_idle_rehash_rounds, "net.ipv4.tcp_plb_idle_rehash_rounds", 0, 3LL, 0LL, 31LL) \\
      X(tcp_plb_rehash_rounds, "net.ipv4.tcp_plb_rehash_rounds", 0, 12LL, 0LL, 31LL) \\
      X(tcp_plb_suspend_rto_sec, "net.ipv4.tcp_plb_suspend_rto_sec", 0, 60LL, 0LL, 255LL) \\
      X(tcp_probe_interval, "net.ipv4.tcp_probe_interval", 0, 600LL, 0LL, 17179869LL) \\
      X(tcp_probe_threshold, "net.ipv4.tcp_probe_threshold", 0, 8LL, (-2147483647-1), 2147483647LL) \\
      X(tcp_recovery, "net.ipv4.tcp_recovery", 0, 1LL, 0LL, 255LL) \\
      X(tcp_reflect_tos, "net.ipv4.tcp_reflect_tos", 0, 0LL, 0LL, 1LL) \\
      X(tcp_reordering, "net.ipv4.tcp_reordering", 0, 3LL, 1LL, 300LL) \\
      X(tcp_retrans_collapse, "net.ipv4.tcp_retrans_collapse", 0, 1LL, 0LL, 255LL) \\
      X(tcp_retries1, "net.ipv4.tcp_retries1", 0, 3LL, 0LL, 255LL) \\
      X(tcp_retries2, "net.ipv4.tcp_retries2", 0, 15LL, 0LL, 255LL) \\
      X(tcp_rfc1337, "net.ipv4.tcp_rfc1337", 0, 0LL, 0LL, 255LL) \\
      X(tcp_rto_max_ms, "net.ipv4.tcp_rto_max_ms", 0, 120000LL, 1000LL, 120000LL) \\
      X(tcp_rto_min_us, "net.ipv4.tcp_rto_min_us", 0, 200000LL, 1LL, 2147483647LL) \\
      X(tcp_sack, "net.ipv4.tcp_sack", 0, 1LL, 0LL, 255LL) \\
      X(tcp_shrink_window, "net.ipv4.tcp_shrink_window", 0, 0LL, 0LL, 1LL) \\
      X(tcp_slow_start_after_idle, "net.ipv4.tcp_slow_start_after_idle", 0, 1LL, 0LL, 255LL) \\
      X(tcp_stdurg, "net.ipv4.tcp_stdurg", 0, 0LL, 0LL, 255LL) \\
      X(tcp_syn_linear_timeouts, "net.ipv4.tcp_syn_linear_timeouts", 0, 4LL, 0LL, 127LL) \\
      X(tcp_syn_retries, "net.ipv4.tcp_syn_retries", 0, 6LL, 1LL, 127LL) \\
      X(tcp_synack_retries, "net.ipv4.tcp_synack_retries", 0, 5LL, 0LL, 255LL) \\
      X(tcp_syncookies, "net.ipv4.tcp_syncookies", 0, 1LL, 0LL, 255LL) \\
      X(tcp_thin_linear_timeouts, "net.ipv4.tcp_thin_linear_timeouts", 0, 0LL, 0LL, 255LL) \\
      X(tcp_timestamps, "net.ipv4.tcp_timestamps", 0, 1LL, 0LL, 255LL) \\
      X(tcp_tso_rtt_log, "net.ipv4.tcp_tso_rtt_log", 0, 9LL, 0LL, 255LL) \\
      X(tcp_tso_win_divisor, "net.ipv4.tcp_tso_win_divisor", 0, 3LL, 0LL, 255LL) \\
      X(tcp_tw_reuse, "net.ipv4.tcp_tw_reuse", 0, 2LL, 0LL, 2LL) \\
      X(tcp_tw_reuse_delay, "net.ipv4.tcp_tw_reuse_delay", 0, 1000LL, 1LL, 60000LL) \\
      X(tcp_window_scaling, "net.ipv4.tcp_window_scaling", 0, 1LL, 0LL, 255LL) \\
      X(tcp_workaround_signed_windows, "net.ipv4.tcp_workaround_signed_windows", 0, 0LL, 0LL, 255LL) \\
      X(tcp_rmem_min, "net.ipv4.tcp_rmem", 0, 4096LL, 1LL, 2147483647LL) \\
      X(tcp_rmem_def, "net.ipv4.tcp_rmem", 1, 131072LL, 1LL, 2147483647LL) \\
      X(tcp_rmem_max, "net.ipv4.tcp_rmem", 2, 33554432LL, 1LL, 2147483647LL) \\
      X(tcp_wmem_min, "net.ipv4.tcp_wmem", 0, 4096LL, 1LL, 2147483647LL) \\
      X(tcp_wmem_def, "net.ipv4.tcp_wmem", 1, 16384LL, 1LL, 2147483647LL) \\
      X(tcp_wmem_max, "net.ipv4.tcp_wmem", 2, 4194304LL, 1LL, 2147483647LL) \\
      X(tcp_mem_min, "net.ipv4.tcp_mem", 0, 287898LL, 0LL, 9223372036854775807LL) \\
      X(tcp_mem_def, "net.ipv4.tcp_mem", 1, 383867LL, 0LL, 9223372036854775807LL) \\
      X(tcp_mem_max, "net.ipv4.tcp_mem", 2, 575796LL, 0LL, 9223372036854775807LL) \\
      X(icmp_echo_enable_probe, "net.ipv4.icmp_echo_enable_probe", 0, 0LL, 0LL, 1LL) \\
      X(icmp_echo_ignore_all, "net.ipv4.icmp_echo_ignore_all", 0, 0LL, 0LL, 1LL) \\
      X(icmp_echo_ignore_broadcasts, "net.ipv4.icmp_echo_ignore_broadcasts", 0, 1LL, 0LL, 1LL) \\
      X(icmp_errors_use_inbound_ifaddr, "net.ipv4.icmp_errors_use_inbound_ifaddr", 0, 0LL, 0LL, 1LL) \\
      X(icmp_ignore_bogus_error_responses, "net.ipv4.icmp_ignore_bogus_error_responses", 0, 1LL, 0LL, 1LL) \\
      X(icmp_msgs_burst, "net.ipv4.icmp_msgs_burst", 0, 50LL, 0LL, 2147483647LL) \\
      X(icmp_msgs_per_sec, "net.ipv4.icmp_msgs_per_sec", 0, 1000LL, 0LL, 2147483647LL) \\
      X(icmp_ratelimit, "net.ipv4.icmp_ratelimit", 0, 1000LL, 0LL, 2147483647LL) \\
      X(icmp_ratemask, "net.ipv4.icmp_ratemask", 0, 6168LL, (-2147483647-1), 2147483647LL) \\
      X(ip_autobind_reuse, "net.ipv4.ip_autobind_reuse", 0, 0LL, 0LL, 1LL) \\
      X(ip_default_ttl, "net.ipv4.ip_default_ttl", 0, 64LL, 1LL, 255LL) \\
      X(ip_dynaddr, "net.ipv4.ip_dynaddr", 0, 0LL, 0LL, 255LL) \\
      X(ip_early_demux, "net.ipv4.ip_early_demux", 0, 1LL, 0LL, 255LL) \\
      X(ip_forward, "net.ipv4.ip_forward", 0, 0LL, (-2147483647-1), 2147483647LL) \\
      X(ip_forward_update_priority, "net.ipv4.ip_forward_update_priority", 0, 1LL, 0LL, 1LL) \\
      X(ip_forward_use_pmtu, "net.ipv4.ip_forward_use_pmtu", 0, 0LL, 0LL, 255LL) \\
      X(ip_local_port_range_low, "net.ipv4.ip_local_port_range", 0, 32768LL, 1LL, 65535LL) \\
      X(ip_local_port_range_high, "net.ipv4.ip_local_port_range", 1, 60999LL, 1LL, 65535LL) \\
      X(ip_no_pmtu_disc, "net.ipv4.ip_no_pmtu_disc", 0, 0LL, 0LL, 255LL) \\
      X(ip_nonlocal_bind, "net.ipv4.ip_nonlocal_bind", 0, 0LL, 0LL, 255LL) \\
      X(ip_unprivileged_port_start, "net.ipv4.ip_unprivileged_port_start", 0, 1024LL, 0LL, 65535LL) \\
      X(ipfrag_high_thresh, "net.ipv4.ipfrag_high_thresh", 0, 4194304LL, 0LL, 9223372036854775807LL) \\
      X(ipfrag_low_thresh, "net.ipv4.ipfrag_low_thresh", 0, 3145728LL, 0LL, 9223372036854775807LL) \\
      X(ipfrag_max_dist, "net.ipv4.ipfrag_max_dist", 0, 64LL, 0LL, 2147483647LL) \\
      X(ipfrag_time, "net.ipv4.ipfrag_time", 0, 30LL, -8589934LL, 8589934LL) \\
      X(route_min_pmtu, "net.ipv4.route.min_pmtu", 0, 552LL, 68LL, 2147483647LL) \\
      X(route_min_adv_mss, "net.ipv4.route.min_adv_mss", 0, 256LL, (-2147483647-1), 2147483647LL) \\
      X(route_mtu_expires, "net.ipv4.route.mtu_expires", 0, 600LL, -8589934LL, 8589934LL) \\
      X(conf_all_accept_source_route, "net.ipv4.conf.all.accept_source_route", 0, 0LL, (-2147483647-1), 2147483647LL) \\
      X(conf_default_accept_source_route, "net.ipv4.conf.default.accept_source_route", 0, 1LL, (-2147483647-1), 2147483647LL) \\
      X(conf_all_rp_filter, "net.ipv4.conf.all.rp_filter", 0, 0LL, (-2147483647-1), 2147483647LL) \\
      X(conf_default_rp_filter, "net.ipv4.conf.default.rp_filter", 0, 0LL, (-2147483647-1), 2147483647LL) \\
      X(conf_all_log_martians, "net.ipv4.conf.all.log_martians", 0, 0LL, (-2147483647-1), 2147483647LL) \\
      X(conf_default_log_martians, "net.ipv4.conf.default.log_martians", 0, 0LL, (-2147483647-1), 2147483647LL) \\
      X(conf_all_accept_redirects, "net.ipv4.conf.all.accept_redirects", 0, 1LL, (-2147483647-1), 2147483647LL) \\
      X(conf_default_accept_redirects, "net.ipv4.conf.default.accept_redirects", 0, 1LL, (-2147483647-1), 2147483647LL) \\
      X(somaxconn, "net.core.somaxconn", 0, 4096LL, 0LL, 2147483647LL) \\
      X(rmem_default, "net.core.rmem_default", 0, 212992LL, 2304LL, 2147483647LL) \\
      X(rmem_max, "net.core.rmem_max", 0, 4194304LL, 2304LL, 2147483647LL) \\
      X(wmem_default, "net.core.wmem_default", 0, 212992LL, 4608LL, 2147483647LL) \\
      X(wmem_max, "net.core.wmem_max", 0, 4194304LL, 4608LL, 2147483647LL) \\
      X(optmem_max, "net.core.optmem_max", 0, 131072LL, 0LL, 2147483647LL) \\
      X(cubic_beta, "/sys/module/tcp_cubic/parameters/beta", 0, 717LL, (-2147483647-1), 2147483647LL) \\
      X(cubic_bic_scale, "/sys/module/tcp_cubic/parameters/bic_scale", 0, 41LL, (-2147483647-1), 2147483647LL) \\
      X(cubic_fast_convergence, "/sys/module/tcp_cubic/parameters/fast_convergence", 0, 1LL, (-2147483647-1), 2147483647LL) \\
      X(cubic_hystart, "/sys/module/tcp_cubic/parameters/hystart", 0, 1LL, (-2147483647-1), 2147483647LL) \\
      X(cubic_hystart_ack_delta_us, "/sys/module/tcp_cubic/parameters/hystart_ack_delta_us", 0, 2000LL, (-2147483647-1), 2147483647LL) \\
      X(cubic_hystart_detect, "/sys/module/tcp_cubic/parameters/hystart_detect", 0, 3LL, (-2147483647-1), 2147483647LL) \\
      X(cubic_hystart_low_window, "/sys/module/tcp_cubic/parameters/hystart_low_window", 0, 16LL, (-2147483647-1), 2147483647LL) \\
      X(cubic_initial_ssthresh, "/sys/module/tcp_cubic/parameters/initial_ssthresh", 0, 0LL, (-2147483647-1), 2147483647LL) \\
      X(cubic_tcp_friendliness, "/sys/module/tcp_cubic/parameters/tcp_friendliness", 0, 1LL, (-2147483647-1), 2147483647LL)

    typedef struct {
    #define X(field, name, pos, def, lo, hi) int64_t field;
      USTACK_SYSCTLS(X)
    #undef X
    } ustack_config_t;

    typedef struct { const char *name; int pos; int64_t def, lo, hi; size_t offset; } ustack_sysctl_t;

    static const ustack_sysctl_t ustack_sysctl_table[] = {
    #define X(field, name, pos, def, lo, hi) { name, pos, def, lo, hi, offsetof(ustack_config_t, field) },
      USTACK_SYSCTLS(X)
    #undef X
    };

    #define USTACK_N_SYSCTLS ((int)(sizeof(ustack_sysctl_table) / sizeof(ustack_sysctl_table[0])))
    """
    ctypedef struct sysctl_row "ustack_sysctl_t":
        const char* name
        int pos
        int64_t deflt "def"
        int64_t lo
        int64_t hi
        size_t offset

    const sysctl_row sysctl_table "ustack_sysctl_table"[]
    int N_SYSCTLS "USTACK_N_SYSCTLS"

    ctypedef struct config_t "ustack_config_t":
        int64_t tcp_abort_on_overflow
        int64_t tcp_adv_win_scale
        int64_t tcp_app_win
        int64_t tcp_autocorking
        int64_t tcp_backlog_ack_defer
        int64_t tcp_base_mss
        int64_t tcp_challenge_ack_limit
        int64_t tcp_child_ehash_entries
        int64_t tcp_comp_sack_delay_ns
        int64_t tcp_comp_sack_nr
        int64_t tcp_comp_sack_slack_ns
        int64_t tcp_dsack
        int64_t tcp_early_demux
        int64_t tcp_early_retrans
        int64_t tcp_ecn
        int64_t tcp_ecn_fallback
        int64_t tcp_ecn_option
        int64_t tcp_ecn_option_beacon
        int64_t tcp_fack
        int64_t tcp_fastopen
        int64_t tcp_fastopen_blackhole_timeout_sec
        int64_t tcp_fin_timeout
        int64_t tcp_frto
        int64_t tcp_fwmark_accept
        int64_t tcp_invalid_ratelimit
        int64_t tcp_keepalive_intvl
        int64_t tcp_keepalive_probes
        int64_t tcp_keepalive_time
        int64_t tcp_l3mdev_accept
        int64_t tcp_limit_output_bytes
        int64_t tcp_max_orphans
        int64_t tcp_max_reordering
        int64_t tcp_max_syn_backlog
        int64_t tcp_max_tw_buckets
        int64_t tcp_migrate_req
        int64_t tcp_min_rtt_wlen
        int64_t tcp_min_snd_mss
        int64_t tcp_min_tso_segs
        int64_t tcp_moderate_rcvbuf
        int64_t tcp_mtu_probe_floor
        int64_t tcp_mtu_probing
        int64_t tcp_no_metrics_save
        int64_t tcp_no_ssthresh_metrics_save
        int64_t tcp_notsent_lowat
        int64_t tcp_orphan_retries
        int64_t tcp_pacing_ca_ratio
        int64_t tcp_pacing_ss_ratio
        int64_t tcp_pingpong_thresh
        int64_t tcp_plb_cong_thresh
        int64_t tcp_plb_enabled
        int64_t tcp_plb_idle_rehash_rounds
        int64_t tcp_plb_rehash_rounds
        int64_t tcp_plb_suspend_rto_sec
        int64_t tcp_probe_interval
        int64_t tcp_probe_threshold
        int64_t tcp_recovery
        int64_t tcp_reflect_tos
        int64_t tcp_reordering
        int64_t tcp_retrans_collapse
        int64_t tcp_retries1
        int64_t tcp_retries2
        int64_t tcp_rfc1337
        int64_t tcp_rto_max_ms
        int64_t tcp_rto_min_us
        int64_t tcp_sack
        int64_t tcp_shrink_window
        int64_t tcp_slow_start_after_idle
        int64_t tcp_stdurg
        int64_t tcp_syn_linear_timeouts
        int64_t tcp_syn_retries
        int64_t tcp_synack_retries
        int64_t tcp_syncookies
        int64_t tcp_thin_linear_timeouts
        int64_t tcp_timestamps
        int64_t tcp_tso_rtt_log
        int64_t tcp_tso_win_divisor
        int64_t tcp_tw_reuse
        int64_t tcp_tw_reuse_delay
        int64_t tcp_window_scaling
        int64_t tcp_workaround_signed_windows
        int64_t tcp_rmem_min
        int64_t tcp_rmem_def
        int64_t tcp_rmem_max
        int64_t tcp_wmem_min
        int64_t tcp_wmem_def
        int64_t tcp_wmem_max
        int64_t tcp_mem_min
        int64_t tcp_mem_def
        int64_t tcp_mem_max
        int64_t icmp_echo_enable_probe
        int64_t icmp_echo_ignore_all
        int64_t icmp_echo_ignore_broadcasts
        int64_t icmp_errors_use_inbound_ifaddr
        int64_t icmp_ignore_bogus_error_responses
        int64_t icmp_msgs_burst
        int64_t icmp_msgs_per_sec
        int64_t icmp_ratelimit
        int64_t icmp_ratemask
        int64_t ip_autobind_reuse
        int64_t ip_default_ttl
        int64_t ip_dynaddr
        int64_t ip_early_demux
        int64_t ip_forward
        int64_t ip_forward_update_priority
        int64_t ip_forward_use_pmtu
        int64_t ip_local_port_range_low
        int64_t ip_local_port_range_high
        int64_t ip_no_pmtu_disc
        int64_t ip_nonlocal_bind
        int64_t ip_unprivileged_port_start
        int64_t ipfrag_high_thresh
        int64_t ipfrag_low_thresh
        int64_t ipfrag_max_dist
        int64_t ipfrag_time
        int64_t route_min_pmtu
        int64_t route_min_adv_mss
        int64_t route_mtu_expires
        int64_t conf_all_accept_source_route
        int64_t conf_default_accept_source_route
        int64_t conf_all_rp_filter
        int64_t conf_default_rp_filter
        int64_t conf_all_log_martians
        int64_t conf_default_log_martians
        int64_t conf_all_accept_redirects
        int64_t conf_default_accept_redirects
        int64_t somaxconn
        int64_t rmem_default
        int64_t rmem_max
        int64_t wmem_default
        int64_t wmem_max
        int64_t optmem_max
        int64_t cubic_beta
        int64_t cubic_bic_scale
        int64_t cubic_fast_convergence
        int64_t cubic_hystart
        int64_t cubic_hystart_ack_delta_us
        int64_t cubic_hystart_detect
        int64_t cubic_hystart_low_window
        int64_t cubic_initial_ssthresh
        int64_t cubic_tcp_friendliness


cdef inline void config_defaults(config_t* c) noexcept nogil:
    """Every field to the default of a fresh network namespace (facts M)."""
    cdef int i
    for i in range(N_SYSCTLS):
        (<int64_t*> (<char*> c + sysctl_table[i].offset))[0] = sysctl_table[i].deflt
