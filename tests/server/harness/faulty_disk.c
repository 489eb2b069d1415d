/* Loaded before the C library: writes to and syncs of files in a folder "dr" fail or take long, as a file says that
 * REDISDR_TEST_FAULTS names. It is read at each call, so that a test can change it while the server runs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int in_log(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return strstr(path, "/dr/") != NULL || (n > 3 && strcmp(path + n - 3, "/dr") == 0);
}

/* The number behind a word in the file; 0 where it is not there. */
static long setting(const char *word) {
    const char *name = getenv("REDISDR_TEST_FAULTS");
    if (name == NULL) return 0;
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    char text[512];
    ssize_t n = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (n <= 0) return 0;
    text[n] = 0;
    char *at = strstr(text, word);
    return at == NULL ? 0 : strtol(at + strlen(word), NULL, 10);
}

/* Waits as long as told and returns the error to give, or 0. The wait ends early when it is taken back. */
static int fault(int fd, const char *ms_word, const char *errno_word) {
    int saved = errno;
    int error = 0;
    if (in_log(fd)) {
        for (long waited = 0; waited < setting(ms_word); waited += 20) {
            struct timespec nap = {0, 20 * 1000 * 1000};
            nanosleep(&nap, NULL);
        }
        error = (int)setting(errno_word);
    }
    errno = saved;
    return error;
}

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, name))

int fdatasync(int fd) {
    int error = fault(fd, "sync_ms=", "sync_errno=");
    if (error != 0) { errno = error; return -1; }
    return REAL("fdatasync", int (*)(int))(fd);
}

int fsync(int fd) {
    int error = fault(fd, "sync_ms=", "sync_errno=");
    if (error != 0) { errno = error; return -1; }
    return REAL("fsync", int (*)(int))(fd);
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at) {
    int error = fault(fd, "write_ms=", "write_errno=");
    if (error != 0) { errno = error; return -1; }
    return REAL("pwrite64", ssize_t (*)(int, const void *, size_t, off64_t))(fd, bytes, len, at);
}
