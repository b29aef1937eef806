/* xdp INTERFACE on|off: a program at the driver's end that moves the beginning of each frame into the room before it and
 * back, and drops the frame if there is none. */
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define INSN(c, d, s, o, i) {.code = c, .dst_reg = d, .src_reg = s, .off = o, .imm = i}

static int load(void)
{
    struct bpf_insn program[] = {
        INSN(BPF_ALU64 | BPF_MOV | BPF_X, 6, 1, 0, 0),
        INSN(BPF_ALU64 | BPF_MOV | BPF_K, 2, 0, 0, -200),
        INSN(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_xdp_adjust_head),
        INSN(BPF_JMP | BPF_JNE | BPF_K, 0, 0, 5, 0),
        INSN(BPF_ALU64 | BPF_MOV | BPF_X, 1, 6, 0, 0),
        INSN(BPF_ALU64 | BPF_MOV | BPF_K, 2, 0, 0, 200),
        INSN(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_xdp_adjust_head),
        INSN(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, XDP_PASS),
        INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
        INSN(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, XDP_DROP),
        INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
    };
    union bpf_attr attr;

    memset(&attr, 0, sizeof attr);
    attr.prog_type = BPF_PROG_TYPE_XDP;
    attr.insns = (unsigned long)program;
    attr.insn_cnt = sizeof program / sizeof program[0];
    attr.license = (unsigned long)"GPL";
    return syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr);
}

int main(int argc, char **argv)
{
    struct {
        struct nlmsghdr header;
        struct ifinfomsg link;
        struct rtattr xdp, fd_attribute;
        int fd;
        struct rtattr flags_attribute;
        unsigned flags;
    } request;
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
        char rest[512];
    } answer;
    int fd = -1, netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);

    if (argc != 3 || netlink < 0)
        return 2;
    if (!strcmp(argv[2], "on") && (fd = load()) < 0) {
        perror("bpf");
        return 1;
    }
    memset(&request, 0, sizeof request);
    request.header.nlmsg_len = sizeof request;
    request.header.nlmsg_type = RTM_SETLINK;
    request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    request.link.ifi_index = if_nametoindex(argv[1]);
    request.xdp.rta_type = NLA_F_NESTED | IFLA_XDP;
    request.xdp.rta_len = sizeof request - offsetof(typeof(request), xdp);
    request.fd_attribute.rta_type = IFLA_XDP_FD;
    request.fd_attribute.rta_len = request.flags_attribute.rta_len = RTA_LENGTH(4);
    request.fd = fd;
    request.flags_attribute.rta_type = IFLA_XDP_FLAGS;
    request.flags = XDP_FLAGS_DRV_MODE;
    send(netlink, &request, sizeof request, 0);
    if (recv(netlink, &answer, sizeof answer, 0) < 0 || answer.error.error) {
        fprintf(stderr, "xdp: %s\n", strerror(-answer.error.error));
        return 1;
    }
    return 0;
}
