/* PID 1 of the tiny guest. Sets up the devices, starts the services, handles the power button. */
#define _GNU_SOURCE
#include "guest.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/input.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define MAX_SERVICES 32
#define MAX_INPUTS 8
#define READY_SECONDS 20

struct service { pid_t pid; time_t started; char name[40]; char *argv[24]; };

static struct service services[MAX_SERVICES];
static int inputs[MAX_INPUTS], input_count;
static int uevents = -1, signals = -1;
static int ready, seeded;

static time_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec;
}

/* ---- messages: on the console, and on the first serial port where that is another device ---- */

static void say_on(const char *device, const char *line)
{
    int fd = open(device, O_WRONLY | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return;
    if (write(fd, line, strlen(line)) > 0)
        tcdrain(fd);
    close(fd);
}

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    char line[512], active[256];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    say_on("/dev/console", line);
    read_text("/sys/class/tty/console/active", active, sizeof active);
    if (!strstr(active, "ttyS0"))
        say_on("/dev/ttyS0", line);
}

/* ---- children ---- */

static pid_t spawn(char *const argv[])
{
    pid_t pid = fork();
    if (pid)
        return pid;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    if (!strcmp(argv[0], "serve"))
        _exit(serve(80));
    execv(argv[0], argv);
    _exit(127);
}

static void start(struct service *s)
{
    s->started = now();
    s->pid = spawn(s->argv);
}

/* Starts a service once; a second call with the same name does nothing. It is restarted whenever it ends. */
static void service(const char *name, ...)
{
    struct service *free_slot = NULL;
    for (int i = 0; i < MAX_SERVICES; i++) {
        if (!strcmp(services[i].name, name))
            return;
        if (!services[i].name[0] && !free_slot)
            free_slot = &services[i];
    }
    if (!free_slot)
        return;
    va_list args;
    char *word;
    int count = 0;
    va_start(args, name);
    while ((word = va_arg(args, char *)) && count < 23)
        free_slot->argv[count++] = strdup(word);
    va_end(args);
    snprintf(free_slot->name, sizeof free_slot->name, "%s", name);
    start(free_slot);
}

static void reap(void)
{
    pid_t pid;
    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
        for (int i = 0; i < MAX_SERVICES; i++)
            if (services[i].pid == pid)
                services[i].pid = 0;
}

static void restart_services(void)
{
    for (int i = 0; i < MAX_SERVICES; i++)
        if (services[i].name[0] && !services[i].pid && now() > services[i].started)
            start(&services[i]);
}

/* Stops a service permanently. */
static void forget_service(const char *name)
{
    for (int i = 0; i < MAX_SERVICES; i++) {
        if (strcmp(services[i].name, name))
            continue;
        if (services[i].pid > 0)
            kill(services[i].pid, SIGKILL);
        for (int word = 0; services[i].argv[word]; word++)
            free(services[i].argv[word]);
        memset(&services[i], 0, sizeof services[i]);
    }
}

/* ---- devices ---- */

static void start_network(void)
{
    char path[300], name[40];
    DIR *dir = opendir("/sys/class/net");
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        snprintf(path, sizeof path, "/sys/class/net/%.64s/device", entry->d_name);
        if (entry->d_name[0] == '.' || strlen(entry->d_name) >= IFNAMSIZ || access(path, F_OK))
            continue;
        snprintf(name, sizeof name, "dhcp %.30s", entry->d_name);
        service(name, "/bin/busybox", "udhcpc", "-f", "-i", entry->d_name, "-s", "/etc/udhcpc.sh", "-t", "8", "-T", "1", "-A",
            "2", "-O", "search", "-O", "staticroutes", "-O", "mtu", "-O", "hostname", NULL);
    }
    if (dir)
        closedir(dir);
}

/* A NIC was unplugged; a later one may get its name. */
static void stop_network(const char *card)
{
    char text[128];
    snprintf(text, sizeof text, "dhcp %.30s", card);
    forget_service(text);
    snprintf(text, sizeof text, RUN_DIR "/net/%.32s.address", card);
    unlink(text);
    snprintf(text, sizeof text, RUN_DIR "/net/%.32s.resolv", card);
    unlink(text);
}

static void start_agent(void)
{
    char path[300], name[128];
    DIR *dir = opendir("/sys/class/virtio-ports");
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%.64s/name", entry->d_name);
        if (entry->d_name[0] == '.' || read_text(path, name, sizeof name) <= 0)
            continue;
        strip(name);
        snprintf(path, sizeof path, "/dev/%.64s", entry->d_name);
        if (!strcmp(name, "org.qemu.guest_agent.0"))
            service("agent", "/usr/sbin/qemu-ga", "-m", "virtio-serial", "-p", path, "-t", "/run", NULL);
    }
    if (dir)
        closedir(dir);
}

static void open_inputs(void)
{
    char path[64];
    while (input_count)
        close(inputs[--input_count]);
    for (int i = 0; i < MAX_INPUTS; i++) {
        snprintf(path, sizeof path, "/dev/input/event%d", i);
        int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        if (fd >= 0)
            inputs[input_count++] = fd;
    }
}

static void read_seed(void)
{
    pid_t pid = seeded ? 0 : fork();
    int status = 1;
    if (seeded)
        return;
    if (!pid) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        if (!seed_find())
            _exit(1);
        seed_apply();
        _exit(0);
    }
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    seeded = pid > 0 && status == 0;
}

/* One message of the kernel: "add@/devices/..." and then KEY=value strings. */
static void uevent(char *message, size_t length)
{
    const char *subsystem = "", *card = "", *alias = NULL;
    int removed = !strncmp(message, "remove@", 7);
    if (!removed && strncmp(message, "add@", 4) && strncmp(message, "change@", 7))
        return;
    for (char *p = message; p < message + length; p += strlen(p) + 1) {
        if (!strncmp(p, "SUBSYSTEM=", 10))
            subsystem = p + 10;
        if (!strncmp(p, "INTERFACE=", 10))
            card = p + 10;
        if (!strncmp(p, "MODALIAS=", 9))
            alias = p + 9;
    }
    if (removed) {
        if (!strcmp(subsystem, "net"))
            stop_network(card);
        return;
    }
    if (alias)
        module_load_alias(alias);
    if (!strcmp(subsystem, "net"))
        start_network();
    if (!strcmp(subsystem, "virtio-ports"))
        start_agent();
    if (!strcmp(subsystem, "input"))
        open_inputs();
    if (!strcmp(subsystem, "block"))
        read_seed();
}

static void drain_uevents(void)
{
    char message[8193];
    ssize_t length;
    while ((length = recv(uevents, message, sizeof message - 1, MSG_DONTWAIT)) > 0) {
        message[length] = 0;
        uevent(message, (size_t)length);
    }
}

/* ---- shutdown ---- */

static void end(const char *why, int command)
{
    say("guest: shutting down (%s)\n", why);
    usleep(100 * 1000); /* a request over the network still gets its answer */
    kill(-1, SIGTERM);
    kill(-1, SIGCONT);
    for (int i = 0; i < 30 && waitpid(-1, NULL, WNOHANG) >= 0; i++)
        usleep(10 * 1000);
    kill(-1, SIGKILL);
    while (waitpid(-1, NULL, 0) > 0)
        ;
    sync();
    say(command == RB_AUTOBOOT ? "guest: rebooting\n" : "guest: powered off\n");
    reboot(command);
    for (;;)
        pause();
}

static void read_power_button(int fd)
{
    struct input_event event;
    while (read(fd, &event, sizeof event) == sizeof event) {
        if (event.type != EV_KEY || event.code != KEY_POWER || event.value != 1)
            continue;
        if (access(RUN_DIR "/ignore-power-button", F_OK) == 0)
            say("guest: power button ignored\n");
        else
            end("power button", RB_POWER_OFF);
    }
}

static void read_signals(void)
{
    struct signalfd_siginfo info;
    while (read(signals, &info, sizeof info) == sizeof info) {
        switch (info.ssi_signo) {
        case SIGCHLD: reap(); break;
        case SIGUSR2: end("poweroff", RB_POWER_OFF); break;
        case SIGUSR1: end("halt", RB_POWER_OFF); break;
        case SIGTERM: end("reboot", RB_AUTOBOOT); break;
        case SIGINT: end("ctrl-alt-del", RB_AUTOBOOT); break;
        }
    }
}

/* ---- ready ---- */

/* True when the DHCP script has finished with this NIC: name servers, routes and host name are set as well. */
static int configured(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, RUN_DIR "/net/%.32s.address", name);
    return access(path, F_OK) == 0;
}

/* 4 or 6, and an address of this network in `text`; 0 when there is none yet. Link-local ones do not count. */
static int find_address(char *text, size_t size)
{
    struct ifaddrs *all;
    int found = 0;
    if (getifaddrs(&all))
        return 0;
    for (struct ifaddrs *a = all; a && found < 4; a = a->ifa_next) {
        if (!a->ifa_addr || a->ifa_flags & IFF_LOOPBACK)
            continue;
        if (a->ifa_addr->sa_family == AF_INET && configured(a->ifa_name)) {
            inet_ntop(AF_INET, &((struct sockaddr_in *)a->ifa_addr)->sin_addr, text, (socklen_t)size);
            found = 4;
        }
        struct in6_addr *six = &((struct sockaddr_in6 *)a->ifa_addr)->sin6_addr;
        if (a->ifa_addr->sa_family == AF_INET6 && !IN6_IS_ADDR_LINKLOCAL(six)) {
            inet_ntop(AF_INET6, six, text, (socklen_t)size);
            found = 6;
        }
    }
    freeifaddrs(all);
    return found;
}

static int has_network(void)
{
    for (int i = 0; i < MAX_SERVICES; i++)
        if (!strncmp(services[i].name, "dhcp ", 5))
            return 1;
    return 0;
}

static void check_ready(void)
{
    char host[65] = "", address[64] = "-";
    if (ready || (has_network() && !find_address(address, sizeof address) && now() < READY_SECONDS))
        return;
    ready = 1;
    gethostname(host, sizeof host - 1);
    say("hyperlet guest ready: %s %s\n", host, address);
    service("login on ttyS0", "/bin/busybox", "getty", "-L", "115200", "ttyS0", "vt100", NULL);
    if (access("/dev/tty1", F_OK) == 0)
        service("login on tty1", "/bin/busybox", "getty", "38400", "tty1", "linux", NULL);
}

/* ---- boot ---- */

static void mount_all(void)
{
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, NULL);
    mkdir("/dev/pts", 0755);
    mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, NULL);
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "size=16m");
    mkdir(RUN_DIR, 0755);
    mkdir(RUN_DIR "/net", 0755);
}

static void loopback_up(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    ioctl(fd, SIOCSIFFLAGS, &request);
    close(fd);
}

static void listen_to_kernel(void)
{
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = 1};
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    signals = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
    uevents = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);
    bind(uevents, (struct sockaddr *)&address, sizeof address);
    reboot(RB_DISABLE_CAD);
}

static void read_command_line(void)
{
    char line[4096];
    read_text("/proc/cmdline", line, sizeof line);
    if (strstr(line, "guest.ignore-power-button"))
        write_text(RUN_DIR "/ignore-power-button", "", 0644);
}

static void loop(void)
{
    struct pollfd polls[2 + MAX_INPUTS];
    for (;;) {
        int count = 2, watched[MAX_INPUTS];
        polls[0] = (struct pollfd){.fd = uevents, .events = POLLIN};
        polls[1] = (struct pollfd){.fd = signals, .events = POLLIN};
        for (int i = 0; i < input_count; i++) {
            watched[i] = inputs[i];
            polls[count++] = (struct pollfd){.fd = inputs[i], .events = POLLIN};
        }
        poll(polls, (nfds_t)count, ready ? 2000 : 100);
        for (int i = 2; i < count; i++)
            if (polls[i].revents)
                read_power_button(watched[i - 2]);
        read_signals();
        drain_uevents();
        start_agent();
        restart_services();
        check_ready();
    }
}

int main(void)
{
    if (getpid() != 1)
        return 64;
    mount_all();
    setenv("PATH", "/sbin:/usr/sbin:/bin:/usr/bin", 1);
    setenv("HOME", "/root", 1);
    sethostname("tiny", 4);
    loopback_up();
    listen_to_kernel();
    read_command_line();
    modules_open("/lib/modules/index");
    module_load("virtio_ring");
    modules_coldplug();
    service("web", "serve", NULL);
    read_seed();
    start_network();
    open_inputs();
    loop();
}
