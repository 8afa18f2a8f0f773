/* Loads kernel modules from an index that the builder writes, one line per module:
 *     name <tab> file <tab> dependency,dependency <tab> alias alias ...
 * Only modules of present devices are loaded: under emulation every module costs milliseconds. */
#include "guest.h"

#include <dirent.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_MODULES 256

struct module { char *name, *file, *needs, *aliases; int loaded; };

static struct module modules[MAX_MODULES];
static int module_count;
static char *index_text;

void modules_open(const char *index)
{
    size_t size = 512 * 1024;
    index_text = malloc(size);
    if (!index_text || read_text(index, index_text, size) < 0)
        return;
    char *line, *rest = index_text;
    while ((line = strsep(&rest, "\n")) && module_count < MAX_MODULES) {
        struct module *m = &modules[module_count];
        m->name = strsep(&line, "\t");
        m->file = strsep(&line, "\t");
        m->needs = strsep(&line, "\t");
        m->aliases = line;
        if (m->aliases)
            module_count++;
    }
}

static int insert(const char *file)
{
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int result = (int)syscall(SYS_finit_module, fd, "", 0);
    close(fd);
    return result;
}

static struct module *find(const char *name, size_t length)
{
    for (int i = 0; i < module_count; i++)
        if (strlen(modules[i].name) == length && !strncmp(modules[i].name, name, length))
            return &modules[i];
    return NULL;
}

static int load(struct module *m)
{
    if (m->loaded)
        return 0;
    m->loaded = 1; /* set first: a cycle in the index must not cause a loop */
    for (const char *need = m->needs; *need;) {
        size_t length = strcspn(need, ",");
        struct module *other = find(need, length);
        if (other)
            load(other);
        need += length + (need[length] == ',');
    }
    return insert(m->file);
}

int module_load(const char *name)
{
    struct module *m = find(name, strlen(name));
    return m ? load(m) : -1;
}

void module_load_alias(const char *alias)
{
    char pattern[512];
    for (int i = 0; i < module_count; i++) {
        const char *p = modules[i].aliases;
        if (modules[i].loaded)
            continue;
        while (*p) {
            size_t length = strcspn(p, " ");
            if (length < sizeof pattern) {
                memcpy(pattern, p, length);
                pattern[length] = 0;
                if (!fnmatch(pattern, alias, 0)) {
                    load(&modules[i]);
                    break;
                }
            }
            p += length + (p[length] == ' ');
        }
    }
}

static void coldplug_bus(const char *bus)
{
    char path[512], alias[512];
    snprintf(path, sizeof path, "/sys/bus/%s/devices", bus);
    DIR *dir = opendir(path);
    if (!dir)
        return;
    struct dirent *entry;
    while ((entry = readdir(dir))) {
        snprintf(path, sizeof path, "/sys/bus/%s/devices/%s/modalias", bus, entry->d_name);
        if (read_text(path, alias, sizeof alias) > 0) {
            strip(alias);
            module_load_alias(alias);
        }
    }
    closedir(dir);
}

void modules_coldplug(void)
{
    /* Each bus may reveal the next one: PCI functions carry virtio devices, which carry SCSI hosts. */
    const char *buses[] = {"pci", "acpi", "virtio", "scsi"};
    for (size_t i = 0; i < sizeof buses / sizeof *buses; i++)
        coldplug_bus(buses[i]);
}
