/* cloud-init for this guest: finds a NoCloud disk (label cidata) or a config drive (label config-2), keeps its files for
 * the report, and applies a small part of #cloud-config: hostname, password, chpasswd, ssh_authorized_keys,
 * write_files, runcmd and bootcmd. User data that begins with #! is run as a script. Everything else is only reported. */
#define _GNU_SOURCE
#include "guest.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_SEED (256 * 1024)
#define MOUNT_POINT RUN_DIR "/mnt"

static char text[MAX_SEED];

/* ---- finding the disk ---- */

static int label_is(const char *label, const char *wanted, size_t width)
{
    size_t length = strlen(wanted);
    if (strncasecmp(label, wanted, length))
        return 0;
    for (size_t i = length; i < width; i++)
        if (label[i] != ' ' && label[i])
            return 0;
    return 1;
}

/* The seed's label if this device has one, and its file system in *type. ISO 9660: volume descriptor in sector 16, name
 * at 40. FAT: label at 43 (FAT12, FAT16) or 71 (FAT32) of the boot sector. */
static const char *seed_label(const char *device, const char **type)
{
    static const char *labels[] = {"cidata", "config-2"};
    char boot[512], volume[2048];
    int fd = open(device, O_RDONLY | O_CLOEXEC);
    const char *found = NULL;
    if (fd < 0)
        return NULL;
    int fat = pread(fd, boot, sizeof boot, 0) == sizeof boot && (unsigned char)boot[510] == 0x55
        && (unsigned char)boot[511] == 0xaa;
    int iso = pread(fd, volume, sizeof volume, 32768) == sizeof volume && !memcmp(volume + 1, "CD001", 5);
    close(fd);
    for (int i = 0; i < 2 && !found; i++) {
        if (iso && label_is(volume + 40, labels[i], 32))
            *type = "iso9660", found = labels[i];
        else if (fat && ((!memcmp(boot + 54, "FAT", 3) && label_is(boot + 43, labels[i], 11))
                         || (!memcmp(boot + 82, "FAT32", 5) && label_is(boot + 71, labels[i], 11))))
            *type = "vfat", found = labels[i];
    }
    return found;
}

static void keep(const char *from, const char *name)
{
    char path[256];
    snprintf(path, sizeof path, MOUNT_POINT "/%s", from);
    if (read_text(path, text, sizeof text) < 0)
        return;
    snprintf(path, sizeof path, SEED_DIR "/%s", name);
    write_text(path, text, 0600);
}

static int take(const char *device, const char *label, const char *type)
{
    module_load(type[0] == 'i' ? "isofs" : "vfat");
    if (type[0] == 'v') {
        module_load("nls_cp437");
        module_load("nls_ascii");
    }
    mkdir(MOUNT_POINT, 0755);
    if (mount(device, MOUNT_POINT, type, MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
        return 0;
    mkdir(SEED_DIR, 0700);
    if (label[1] == 'i') {
        keep("user-data", "user-data");
        keep("meta-data", "meta-data");
        keep("network-config", "network-config");
    } else {
        keep("openstack/latest/user_data", "user-data");
        keep("openstack/latest/meta_data.json", "meta-data");
        keep("openstack/latest/network_data.json", "network-config");
    }
    umount(MOUNT_POINT);
    write_text(SEED_DIR ".source", device, 0644);
    return 1;
}

int seed_find(void)
{
    char device[300];
    const char *type = NULL;
    DIR *dir = opendir("/sys/class/block");
    struct dirent *entry;
    int found = 0;
    while (dir && !found && (entry = readdir(dir))) {
        if (entry->d_name[0] == '.' || !strncmp(entry->d_name, "loop", 4) || !strncmp(entry->d_name, "ram", 3))
            continue;
        snprintf(device, sizeof device, "/dev/%s", entry->d_name);
        const char *label = seed_label(device, &type);
        found = label && take(device, label, type);
    }
    if (dir)
        closedir(dir);
    return found;
}

/* ---- applying it ---- */

static struct out keys, commands;

static void list_item(struct out *list, const char *item, const char *more)
{
    if (list->length)
        out_text(list, ",");
    out_text(list, more);
    out_json_bytes(list, item, strlen(item));
}

static int run(char *const argv[])
{
    int status;
    pid_t pid = fork();
    if (!pid) {
        execv(argv[0], argv);
        _exit(127);
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void run_command(char *command)
{
    char code[64];
    char *argv[] = {"/bin/sh", "-c", command, NULL};
    snprintf(code, sizeof code, "{\"exit\":%d,\"command\":", run(argv));
    list_item(&commands, command, code);
    out_text(&commands, "}");
}

static void set_hostname(const char *name)
{
    char host[65];
    snprintf(host, sizeof host, "%s", name);
    if (*host && !sethostname(host, strlen(host)))
        write_text(RUN_DIR "/hostname.fixed", host, 0644);
}

/* Replaces the user's hash in /etc/shadow. A password that begins with $ is a hash already. */
static void set_password(const char *user, const char *password)
{
    char hash[256] = "", old[4096], shadow[4608] = "", *line, *rest = old;
    if (password[0] == '$') {
        snprintf(hash, sizeof hash, "%s", password);
    } else {
        int ends[2];
        if (pipe(ends))
            return;
        pid_t pid = fork();
        if (!pid) {
            dup2(ends[1], 1);
            execl("/bin/busybox", "mkpasswd", "-m", "sha256", "-S", "hyperlettinygues", password, NULL);
            _exit(127);
        }
        close(ends[1]);
        ssize_t got = read(ends[0], hash, sizeof hash - 1);
        hash[got > 0 ? got : 0] = 0;
        close(ends[0]);
        waitpid(pid, NULL, 0);
        strip(hash);
    }
    if (!*hash || read_text("/etc/shadow", old, sizeof old) < 0)
        return;
    while ((line = strsep(&rest, "\n"))) {
        size_t length = strlen(user);
        if (!*line)
            continue;
        if (!strncmp(line, user, length) && line[length] == ':') {
            const char *tail = strchr(line + length + 1, ':');
            snprintf(shadow + strlen(shadow), sizeof shadow - strlen(shadow), "%s:%s%s\n", user, hash, tail ? tail : ":::::::");
        } else {
            snprintf(shadow + strlen(shadow), sizeof shadow - strlen(shadow), "%s\n", line);
        }
    }
    write_text("/etc/shadow", shadow, 0600);
}

/* `user:password` of a chpasswd list. */
static void set_password_line(char *line)
{
    char *user = strsep(&line, ":");
    if (line)
        set_password(user, line);
}

/* ---- the subset of YAML in the tests' cloud configs ---- */

struct item { char path[256], permissions[16], name[64], password[256]; char *content; };

static struct item item;

static void flush_item(const char *top)
{
    char dir[256];
    if (!strcmp(top, "write_files") && item.path[0] == '/' && item.content) {
        for (char *slash = item.path + 1; (slash = strchr(slash, '/')); slash++) {
            snprintf(dir, sizeof dir, "%.*s", (int)(slash - item.path), item.path);
            mkdir(dir, 0755);
        }
        write_text(item.path, item.content, item.permissions[0] ? (int)strtol(item.permissions, NULL, 8) : 0644);
    }
    if (!strcmp(top, "chpasswd") && item.name[0] && item.password[0])
        set_password(item.name, item.password);
    memset(&item, 0, sizeof item);
}

/* Removes the quotes of a plain YAML scalar; in double quotes, \" and \\ and \n mean what they do in YAML. Comments stay out. */
static char *scalar(char *value)
{
    while (*value == ' ')
        value++;
    strip(value);
    char quote = *value;
    if (quote != '"' && quote != '\'') {
        char *comment = strstr(value, " #");
        if (comment)
            *comment = 0;
        strip(value);
        return value;
    }
    char *to = value, *from = value + 1;
    for (; *from && *from != quote; from++) {
        if (quote == '"' && *from == '\\' && from[1]) {
            from++;
            *to++ = *from == 'n' ? '\n' : *from == 't' ? '\t' : *from;
        } else {
            *to++ = *from;
        }
    }
    *to = 0;
    return value;
}

/* [a, "b c"] as a shell command line. */
static char *flow_list(char *value)
{
    static char command[4096];
    size_t length = strlen(value);
    if (*value != '[' || value[length - 1] != ']')
        return scalar(value);
    value[length - 1] = 0;
    command[0] = 0;
    char *rest = value + 1;
    while (rest && *rest) {
        char *start = rest;
        while (*start == ' ')
            start++;
        char *end = *start == '"' || *start == '\'' ? strchr(start + 1, *start) : NULL;
        end = strchr(end ? end : start, ',');
        rest = end ? end + 1 : NULL;
        if (end)
            *end = 0;
        size_t used = strlen(command);
        snprintf(command + used, sizeof command - used, "'%s' ", scalar(start));
    }
    return command;
}

static void pair(const char *top, const char *key, char *value)
{
    if (!strcmp(key, "path"))
        snprintf(item.path, sizeof item.path, "%s", value);
    else if (!strcmp(key, "permissions"))
        snprintf(item.permissions, sizeof item.permissions, "%s", value);
    else if (!strcmp(key, "name"))
        snprintf(item.name, sizeof item.name, "%s", value);
    else if (!strcmp(key, "password") && !strcmp(top, "chpasswd"))
        snprintf(item.password, sizeof item.password, "%s", value);
    else if (!strcmp(key, "content"))
        item.content = strdup(value);
    else if (!strcmp(key, "list") && !strcmp(top, "chpasswd")) {
        char *line;
        while ((line = strsep(&value, "\n")))
            if (*line)
                set_password_line(line);
    }
}

static void top_level(const char *key, char *value)
{
    if (!strcmp(key, "hostname") || !strcmp(key, "local-hostname"))
        set_hostname(value);
    else if (!strcmp(key, "password") && *value) {
        set_password("root", value);
        set_password("tiny", value);
    }
}

static void list_entry(const char *top, char *value)
{
    if (!strcmp(top, "ssh_authorized_keys"))
        list_item(&keys, scalar(value), "");
    else if (!strcmp(top, "runcmd") || !strcmp(top, "bootcmd"))
        run_command(flow_list(value));
    else if (!strcmp(top, "chpasswd"))
        set_password_line(scalar(value));
}

static size_t indent_of(const char *line)
{
    return strspn(line, " ");
}

/* The lines below `key: |` that are further in than the key, without their common indentation. *rest moves past them. */
static char *block(char **rest, size_t indent)
{
    struct out body = {0};
    size_t common = 0;
    out_text(&body, "");
    while (*rest && **rest) {
        size_t depth = indent_of(*rest), length = strcspn(*rest, "\n");
        if (depth < length && depth <= indent)
            break;
        if (!common)
            common = depth;
        if (length > common)
            out_bytes(&body, *rest + common, length - common);
        out_text(&body, "\n");
        *rest += length + ((*rest)[length] == '\n');
    }
    return body.data;
}

static char *value_of(char *value, char **rest, size_t indent)
{
    strip(value);
    return *value == '|' || *value == '>' ? block(rest, indent) : scalar(value);
}

static void mapping(char *top, size_t size, char *line, size_t indent, char **rest)
{
    char *colon = strstr(line, ": ");
    if (!colon && (colon = strrchr(line, ':')) && colon[1])
        colon = NULL;
    if (!colon)
        return;
    *colon = 0;
    char *raw = colon + 1 + strspn(colon + 1, " ");
    if (indent) {
        pair(top, line, value_of(raw, rest, indent));
        return;
    }
    flush_item(top);
    snprintf(top, size, "%s", line);
    top_level(top, value_of(raw, rest, 0));
}

static int is_mapping_list(const char *top)
{
    return !strcmp(top, "write_files") || !strcmp(top, "chpasswd") || !strcmp(top, "users");
}

static void apply_config(char *config)
{
    char top[64] = "", *rest = config, *line;
    while (rest && (line = strsep(&rest, "\n"))) {
        size_t indent = indent_of(line);
        line += indent;
        strip(line);
        if (!*line || *line == '#')
            continue;
        if (strncmp(line, "- ", 2)) {
            mapping(top, sizeof top, line, indent, &rest);
            continue;
        }
        line += 2 + indent_of(line + 2);
        if (is_mapping_list(top) && strstr(line, ": ")) {
            flush_item(top);
            mapping(top, sizeof top, line, indent + 2, &rest);
        } else {
            list_entry(top, value_of(line, &rest, indent));
        }
    }
    flush_item(top);
}

/* meta-data is YAML or JSON; either way the name follows the key. */
static void apply_meta(void)
{
    if (read_text(SEED_DIR "/meta-data", text, sizeof text) <= 0)
        return;
    char *at = strstr(text, "local-hostname");
    at = at ? at + strlen("local-hostname") : (at = strstr(text, "\"hostname\"")) ? at + strlen("\"hostname\"") : NULL;
    if (!at)
        return;
    at += strspn(at, "\"': \t");
    at[strcspn(at, "\"', \t\r\n}")] = 0;
    set_hostname(at);
}

void seed_apply(void)
{
    struct out applied = {0};
    apply_meta();
    if (read_text(SEED_DIR "/user-data", text, sizeof text) > 0) {
        if (!strncmp(text, "#cloud-config", 13)) {
            apply_config(text);
        } else if (!strncmp(text, "#!", 2)) {
            chmod(SEED_DIR "/user-data", 0700);
            run_command(SEED_DIR "/user-data");
        }
    }
    out_text(&applied, "{\"sshAuthorizedKeys\":[");
    out_text(&applied, keys.data ? keys.data : "");
    out_text(&applied, "],\"commands\":[");
    out_text(&applied, commands.data ? commands.data : "");
    out_text(&applied, "]}");
    write_text(RUN_DIR "/applied.json", applied.data, 0644);
}
