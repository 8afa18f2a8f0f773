/* The web server's report about this guest, as JSON. */
#define _GNU_SOURCE
#include "guest.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

void out_bytes(struct out *out, const char *bytes, size_t length)
{
    if (out->length + length + 1 > out->size) {
        size_t size = (out->length + length + 1) * 2;
        char *data = realloc(out->data, size);
        if (!data)
            return;
        out->data = data;
        out->size = size;
    }
    memcpy(out->data + out->length, bytes, length);
    out->length += length;
    out->data[out->length] = 0;
}

void out_text(struct out *out, const char *text)
{
    out_bytes(out, text, strlen(text));
}

void out_format(struct out *out, const char *format, ...)
{
    char buffer[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(buffer, sizeof buffer, format, args);
    va_end(args);
    out_text(out, buffer);
}

/* Invalid UTF-8 bytes become one \u00XX each (Latin-1), so that the answer is JSON for any content of a disk. */
static size_t utf8_length(const unsigned char *p, size_t left)
{
    size_t n = p[0] < 0x80 ? 1 : p[0] >= 0xc2 && p[0] < 0xe0 ? 2 : p[0] >= 0xe0 && p[0] < 0xf0 ? 3
        : p[0] >= 0xf0 && p[0] < 0xf5 ? 4 : 0;
    if (!n || n > left)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90)
        || (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return n;
}

void out_json_bytes(struct out *out, const char *bytes, size_t length)
{
    out_text(out, "\"");
    for (size_t i = 0; i < length;) {
        unsigned char c = (unsigned char)bytes[i];
        size_t n = utf8_length((const unsigned char *)bytes + i, length - i);
        if (c == '"' || c == '\\')
            out_format(out, "\\%c", c);
        else if (c == '\n')
            out_text(out, "\\n");
        else if (c < 0x20 || c == 0x7f || !n)
            out_format(out, "\\u%04x", c);
        else
            out_bytes(out, bytes + i, n);
        i += n ? n : 1;
    }
    out_text(out, "\"");
}

static void field(struct out *out, const char *name, const char *value)
{
    out_format(out, "\"%s\":", name);
    out_json_bytes(out, value, strlen(value));
    out_text(out, ",");
}

static void field_file(struct out *out, const char *name, const char *path)
{
    char text[4096];
    read_text(path, text, sizeof text);
    strip(text);
    field(out, name, text);
}

/* Drops a comma that a loop left behind, then closes. */
static void close_with(struct out *out, const char *end)
{
    if (out->length && out->data[out->length - 1] == ',')
        out->data[--out->length] = 0;
    out_text(out, end);
}

static void addresses(struct out *out, struct ifaddrs *all, const char *name)
{
    char text[INET6_ADDRSTRLEN];
    out_text(out, "\"addresses\":[");
    for (struct ifaddrs *a = all; a; a = a->ifa_next) {
        if (!a->ifa_addr || !a->ifa_netmask || strcmp(a->ifa_name, name))
            continue;
        int family = a->ifa_addr->sa_family, bits = 0;
        if (family != AF_INET && family != AF_INET6)
            continue;
        const void *address = family == AF_INET ? (void *)&((struct sockaddr_in *)a->ifa_addr)->sin_addr
            : (void *)&((struct sockaddr_in6 *)a->ifa_addr)->sin6_addr;
        const unsigned char *mask = family == AF_INET ? (void *)&((struct sockaddr_in *)a->ifa_netmask)->sin_addr
            : (void *)&((struct sockaddr_in6 *)a->ifa_netmask)->sin6_addr;
        for (int i = 0; i < (family == AF_INET ? 4 : 16); i++)
            bits += __builtin_popcount(mask[i]);
        inet_ntop(family, address, text, sizeof text);
        out_format(out, "\"%s/%d\",", text, bits);
    }
    close_with(out, "]");
}

static void interfaces(struct out *out)
{
    char path[300];
    struct ifaddrs *all = NULL;
    DIR *dir = opendir("/sys/class/net");
    struct dirent *entry;
    if (getifaddrs(&all))
        all = NULL;
    out_text(out, "\"interfaces\":[");
    while (dir && (entry = readdir(dir))) {
        if (entry->d_name[0] == '.' || !strcmp(entry->d_name, "lo"))
            continue;
        out_text(out, "{");
        field(out, "name", entry->d_name);
        snprintf(path, sizeof path, "/sys/class/net/%.64s/address", entry->d_name);
        field_file(out, "mac", path);
        snprintf(path, sizeof path, "/sys/class/net/%.64s/operstate", entry->d_name);
        field_file(out, "state", path);
        char mtu[32];
        snprintf(path, sizeof path, "/sys/class/net/%.64s/mtu", entry->d_name);
        read_text(path, mtu, sizeof mtu);
        out_format(out, "\"mtu\":%d,", atoi(mtu));
        addresses(out, all, entry->d_name);
        out_text(out, "},");
    }
    close_with(out, "],");
    if (dir)
        closedir(dir);
    if (all)
        freeifaddrs(all);
}

static void disks(struct out *out)
{
    char path[300], text[128];
    DIR *dir = opendir("/sys/block");
    struct dirent *entry;
    out_text(out, "\"disks\":[");
    while (dir && (entry = readdir(dir))) {
        if (entry->d_name[0] == '.')
            continue;
        out_text(out, "{");
        field(out, "name", entry->d_name);
        snprintf(path, sizeof path, "/sys/block/%.64s/serial", entry->d_name);
        field_file(out, "serial", path);
        snprintf(path, sizeof path, "/sys/block/%.64s/size", entry->d_name);
        read_text(path, text, sizeof text);
        out_format(out, "\"bytes\":%lld,", atoll(text) * 512);
        snprintf(path, sizeof path, "/sys/block/%.64s/ro", entry->d_name);
        read_text(path, text, sizeof text);
        out_format(out, "\"readonly\":%s},", text[0] == '1' ? "true" : "false");
    }
    close_with(out, "],");
    if (dir)
        closedir(dir);
}

/* The words after `key` on the lines of resolv.conf that begin with it. */
static void resolver(struct out *out, const char *name, const char *key)
{
    char text[4096], *line, *rest = text;
    read_text("/etc/resolv.conf", text, sizeof text);
    out_format(out, "\"%s\":[", name);
    while ((line = strsep(&rest, "\n"))) {
        char *word = strsep(&line, " ");
        if (strcmp(word, key))
            continue;
        while (line && (word = strsep(&line, " ")))
            if (*word) {
                out_json_bytes(out, word, strlen(word));
                out_text(out, ",");
            }
    }
    close_with(out, "],");
}

static void seed_file(struct out *out, const char *name)
{
    static char text[256 * 1024];
    char path[128];
    snprintf(path, sizeof path, SEED_DIR "/%s", name);
    int length = read_text(path, text, sizeof text);
    if (length < 0)
        return;
    out_format(out, "\"%s\":", name);
    out_json_bytes(out, text, (size_t)length);
    out_text(out, ",");
}

static void seed(struct out *out)
{
    static char done[256 * 1024];
    out_text(out, "\"cloudInit\":{");
    field_file(out, "source", SEED_DIR ".source");
    seed_file(out, "user-data");
    seed_file(out, "meta-data");
    seed_file(out, "network-config");
    /* seed.c writes this one as JSON. */
    if (read_text(RUN_DIR "/applied.json", done, sizeof done) > 0)
        out_text(out, "\"applied\":"), out_text(out, done);
    close_with(out, "},");
}

void report(struct out *out, unsigned long counter)
{
    struct utsname name;
    struct sysinfo info;
    char uptime[64];
    uname(&name);
    sysinfo(&info);
    read_text("/proc/uptime", uptime, sizeof uptime);
    out_text(out, "{");
    field(out, "hostname", name.nodename);
    field(out, "kernel", name.release);
    field_file(out, "bootId", "/proc/sys/kernel/random/boot_id");
    field_file(out, "cmdline", "/proc/cmdline");
    field_file(out, "productSerial", "/sys/class/dmi/id/product_serial");
    field_file(out, "productUuid", "/sys/class/dmi/id/product_uuid");
    out_format(out, "\"counter\":%lu,\"uptime\":%.2f,\"cpus\":%ld,\"memoryBytes\":%llu,", counter, atof(uptime),
        sysconf(_SC_NPROCESSORS_ONLN), (unsigned long long)info.totalram * info.mem_unit);
    interfaces(out);
    resolver(out, "dns", "nameserver");
    resolver(out, "search", "search");
    disks(out);
    seed(out);
    close_with(out, "}\n");
}
