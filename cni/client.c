/*
 * The executable that the container runtime runs as cnv-bridge or cnv-tuning. It forwards the call to the daemon and
 * prints the response; wire.py describes the protocol. Without a response in time: CNI error 11, exit code 1.
 *
 * VERSION is answered here, so that it works while the daemon is down.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef SOCKET_PATH
#define SOCKET_PATH "/run/hyperlet/cni/cni.sock"
#endif
#ifndef ANSWER_SECONDS
#define ANSWER_SECONDS 90
#endif
#define CONNECT_SECONDS 1
#define ENVIRONMENT_LIMIT (64u << 10)
#define INPUT_LIMIT (1u << 20)
#define OUTPUT_LIMIT (4u << 20)
#define REQUEST_HEADER 12u
#define ANSWER_HEADER 16u
#define LATEST "1.1.0"

extern char **environ;

static uint8_t request[REQUEST_HEADER + ENVIRONMENT_LIMIT + INPUT_LIMIT + 1];

static void write_all(int fd, const uint8_t *data, size_t size) {
    while (size > 0) {
        ssize_t done = write(fd, data, size);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return;
        data += done;
        size -= (size_t)done;
    }
}

/* A CNI error on stdout; `message` must not need JSON escapes. */
static int fail(int code, const char *message) {
    char text[512];
    int size = snprintf(text, sizeof text, "{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"%s\"}\n", LATEST, code, message);
    if (size > 0 && (size_t)size < sizeof text)
        write_all(STDOUT_FILENO, (const uint8_t *)text, (size_t)size);
    return 1;
}

static void put(uint8_t *at, uint32_t value) {
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

static uint32_t get(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* Appends a NUL-terminated string to the environment; 0 if it does not fit. */
static int append(size_t *used, const char *text) {
    size_t size = strlen(text) + 1;
    if (size > ENVIRONMENT_LIMIT - *used)
        return 0;
    memcpy(request + REQUEST_HEADER + *used, text, size);
    *used += size;
    return 1;
}

/* Reads standard input to its end into `at`; -1 if it is longer than the limit or on an error. */
static ssize_t slurp(uint8_t *at) {
    size_t used = 0;
    while (used <= INPUT_LIMIT) {
        ssize_t done = read(STDIN_FILENO, at + used, INPUT_LIMIT + 1 - used);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -1;
        if (done == 0)
            return (ssize_t)used;
        used += (size_t)done;
    }
    return -1;
}

/* The specification requires the version of the input to be echoed; only supported ones are. */
static int version(const char *input) {
    static const char *const known[] = {"0.3.1", "0.4.0", "1.0.0", LATEST};
    const char *chosen = LATEST;
    char text[160];
    const char *at = strstr(input, "\"cniVersion\"");
    if (at != NULL) {
        at += strlen("\"cniVersion\"");
        at += strspn(at, " \t\r\n");
        if (*at == ':') {
            at++;
            at += strspn(at, " \t\r\n");
            for (size_t i = 0; i < sizeof known / sizeof *known; i++)
                if (*at == '"' && strncmp(at + 1, known[i], strlen(known[i])) == 0 && at[1 + strlen(known[i])] == '"')
                    chosen = known[i];
        }
    }
    int size = snprintf(text, sizeof text,
                        "{\"cniVersion\":\"%s\",\"supportedVersions\":[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n", chosen);
    write_all(STDOUT_FILENO, (const uint8_t *)text, (size_t)size);
    return 0;
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static int dial(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = CONNECT_SECONDS};
    if (strlen(path) >= sizeof address.sun_path)
        return -1;
    memcpy(address.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    /* The timeout also applies to a connect that waits for the listener's backlog (unix(7)). */
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        close(fd);
        return -1;
    }
    limit.tv_sec = ANSWER_SECONDS;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    return fd;
}

/* Sends the whole request, with the namespace's descriptor (-1: none) on its first byte. */
static int deliver(int connection, size_t size, int netns) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    size_t sent = 0;
    memset(&control, 0, sizeof control);
    while (sent < size) {
        struct iovec part = {.iov_base = request + sent, .iov_len = size - sent};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        if (sent == 0 && netns >= 0) {
            message.msg_control = control.space;
            message.msg_controllen = sizeof control.space;
            struct cmsghdr *header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = SCM_RIGHTS;
            header->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(header), &netns, sizeof netns);
        }
        ssize_t done = sendmsg(connection, &message, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return -1;
        sent += (size_t)done;
    }
    return 0;
}

/* Receives exactly `size` bytes before the deadline. */
static int take(int connection, uint8_t *at, size_t size, int64_t deadline) {
    while (size > 0) {
        int64_t left = deadline - now();
        struct pollfd wait = {.fd = connection, .events = POLLIN};
        if (left <= 0)
            return -1;
        int ready = poll(&wait, 1, (int)left);
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready <= 0)
            return -1;
        ssize_t done = recv(connection, at, size, 0);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return -1;
        at += done;
        size -= (size_t)done;
    }
    return 0;
}

static int answer(int connection) {
    uint8_t header[ANSWER_HEADER];
    int64_t deadline = now() + (int64_t)ANSWER_SECONDS * 1000;
    if (take(connection, header, sizeof header, deadline) < 0)
        return fail(11, "the daemon of cnv-bridge and cnv-tuning did not respond; try again later");
    uint32_t code = get(header + 4), out = get(header + 8), error = get(header + 12);
    if (memcmp(header, "HLC1", 4) != 0 || out > OUTPUT_LIMIT || error > OUTPUT_LIMIT - out)
        return fail(11, "the daemon of cnv-bridge and cnv-tuning sent an invalid response; try again later");
    uint8_t *body = malloc((size_t)out + error + 1);
    if (body == NULL)
        return fail(11, "out of memory");
    if (take(connection, body, (size_t)out + error, deadline) < 0) {
        free(body);
        return fail(11, "the daemon of cnv-bridge and cnv-tuning closed the connection; try again later");
    }
    write_all(STDOUT_FILENO, body, out);
    write_all(STDERR_FILENO, body + out, error);
    free(body);
    return code > 255 ? 1 : (int)code;
}

int main(int argc, char **argv) {
    const char *name = argc > 0 ? strrchr(argv[0], '/') : NULL;
    const char *command = getenv("CNI_COMMAND"), *place = getenv("CNI_NETNS"), *path = SOCKET_PATH;
    size_t used = 0;
    if (argc < 1 || !append(&used, name != NULL ? name + 1 : argv[0]))
        return fail(4, "the name of this program is too long");
    for (char **each = environ; *each != NULL; each++)
        if (strncmp(*each, "CNI_", 4) == 0 && strchr(*each, '=') != NULL && !append(&used, *each))
            return fail(4, "the CNI_ variables are longer than 65536 bytes");
    ssize_t input = 0;
    /* Without a command no input is needed: the about text must not wait for a terminal. */
    if (command != NULL && *command != '\0')
        input = slurp(request + REQUEST_HEADER + used);
    if (input < 0)
        return fail(5, "the network configuration on stdin cannot be read or is longer than 1048576 bytes");
    if (command != NULL && strcmp(command, "VERSION") == 0) {
        request[REQUEST_HEADER + used + (size_t)input] = 0;
        return version((const char *)request + REQUEST_HEADER + used);
    }
    memcpy(request, "HLC1", 4);
    put(request + 4, (uint32_t)used);
    put(request + 8, (uint32_t)input);
#ifdef TEST_BUILD
    if (getenv("HYPERLET_CNI_SOCKET") != NULL)
        path = getenv("HYPERLET_CNI_SOCKET");
#endif
    /* O_NONBLOCK: opening a file of another type must not block. The daemon checks the type. */
    int netns = place != NULL && *place == '/' ? open(place, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY) : -1;
    int connection = dial(path);
    if (connection < 0)
        return fail(11, "the daemon of cnv-bridge and cnv-tuning is down; try again later");
    if (deliver(connection, REQUEST_HEADER + used + (size_t)input, netns) < 0)
        return fail(11, "the daemon of cnv-bridge and cnv-tuning does not accept calls; try again later");
    return answer(connection);
}
