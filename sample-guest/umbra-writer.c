/*
 * umbra-writer: the workload of the sample guest, and its judge.
 *
 *   umbra-writer write [-r RATE] LOG...    append numbered, checksummed records, RATE per second (0 = flat out)
 *   umbra-writer verify [-f SEQ] LOG...    check the logs, print JSON; exit 1 if anything is wrong
 *
 * Each record goes to the first log and is fsynced there before the same number goes to the second one. So at any single
 * instant the first log is ahead of the second by 0 or 1: a copy of two disks that shows any other lead was not taken of
 * both at the same instant. A record is RECORD bytes of text: head, filler, CRC-32 of all that precedes it, newline.
 * Types: W written, Q written when a freeze hook asked for quiet, B the writer started, R repaired after a crash.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define RECORD 128
#define TAIL 14 /* "crc=xxxxxxxx\n" and the blank before it */
#define MAX_LOGS 8
#define QUIET_FLAG "/run/umbra-writer.quiesced" /* on tmpfs: no disk may be touched while the guest is frozen */
#define QUIET_MAX_S 180                         /* nobody resumes us: go on rather than stand still for ever */

typedef unsigned long long u64;

struct record { char type; u64 seq; double mono, real; };

struct log {
  const char *path;
  int exists;
  u64 records, first, last, gaps, duplicates, max_gap_seq;
  long bytes, good;
  char last_type;
  double max_gap, max_gap_real, last_real;
};

static uint32_t crc32(const char *bytes, int count) {
  uint32_t crc = ~0u;
  while (count--) {
    crc ^= (unsigned char)*bytes++;
    for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? 0xEDB88320u ^ (crc >> 1) : crc >> 1;
  }
  return ~crc;
}

static double now(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

static void nap(double seconds) {
  struct timespec time = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
  nanosleep(&time, NULL);
}

/* ---- reading ---- */

static int parse(const char *bytes, struct record *record) {
  char text[RECORD + 1];
  unsigned crc;
  memcpy(text, bytes, RECORD);
  text[RECORD] = 0;
  if (sscanf(text, "UMBRA1 %c %llu mono=%lf real=%lf", &record->type, &record->seq, &record->mono, &record->real) != 4)
    return 0;
  if (text[RECORD - 1] != '\n' || sscanf(text + RECORD - TAIL, " crc=%8x", &crc) != 1) return 0;
  return crc32(bytes, RECORD - TAIL) == crc;
}

/* Reads whole records until the first that is not one; what follows it counts as torn. */
static void scan(int fd, struct log *log, u64 from) {
  struct record record, before = {0};
  char bytes[RECORD];
  while (log->good + RECORD <= log->bytes && pread(fd, bytes, RECORD, log->good) == RECORD && parse(bytes, &record)) {
    if (!log->records) log->first = record.seq;
    else if (record.type == 'W' || record.type == 'R') {
      if (record.seq <= before.seq) log->duplicates++;
      else if (record.seq != before.seq + 1) log->gaps++;
    }
    /* the stall: not counted over a restart of the writer (B), and only after record `from` */
    if (log->records && record.type != 'B' && record.seq > from) {
      if (record.mono - before.mono > log->max_gap) {
        log->max_gap = record.mono - before.mono;
        log->max_gap_seq = record.seq;
      }
      if (record.real - before.real > log->max_gap_real) log->max_gap_real = record.real - before.real;
    }
    log->records++;
    log->last = record.seq;
    log->last_type = record.type;
    log->last_real = record.real;
    log->good += RECORD;
    before = record;
  }
}

/* The sizes are taken back to front and all at once: seen that way a log being written keeps its lead of 0 or 1. */
static void open_logs(struct log *logs, int *fds, int count, char **paths, int flags, u64 from) {
  struct stat status;
  memset(logs, 0, sizeof *logs * count);
  for (int i = 0; i < count; i++) fds[i] = open(paths[i], flags, 0644);
  for (int i = count - 1; i >= 0; i--) {
    logs[i].path = paths[i];
    if (fds[i] < 0 || fstat(fds[i], &status)) continue;
    logs[i].exists = 1;
    logs[i].bytes = status.st_size;
  }
  for (int i = 0; i < count; i++)
    if (logs[i].exists) scan(fds[i], &logs[i], from);
}

static int verify(int count, char **paths, u64 from) {
  struct log logs[MAX_LOGS];
  int fds[MAX_LOGS], bad = 0, quiesced = 1;
  open_logs(logs, fds, count, paths, O_RDONLY, from);
  printf("{\"logs\":[");
  for (int i = 0; i < count; i++) {
    struct log *log = &logs[i];
    if (!log->exists || log->good != log->bytes || log->gaps || log->duplicates) bad = 1;
    if (log->last_type != 'Q') quiesced = 0;
    printf("%s{\"path\":\"%s\",\"exists\":%s,\"records\":%llu,\"first\":%llu,\"last\":%llu,\"lastType\":\"%c\",\"gaps\":%llu,"
           "\"duplicates\":%llu,\"bytes\":%ld,\"tornBytes\":%ld,\"maxGapMs\":%.0f,\"maxGapRealMs\":%.0f,\"maxGapSeq\":%llu,"
           "\"lastRealMs\":%.0f}",
           i ? "," : "", log->path, log->exists ? "true" : "false", log->records, log->first, log->last,
           log->last_type ? log->last_type : '-', log->gaps, log->duplicates, log->bytes, log->bytes - log->good,
           log->max_gap * 1e3, log->max_gap_real * 1e3, log->max_gap_seq, log->last_real * 1e3);
  }
  long long lead = count > 1 ? (long long)logs[0].last - (long long)logs[1].last : 0;
  int consistent = lead == 0 || lead == 1;
  if (!consistent) bad = 1;
  printf("],\"lead\":%lld,\"crossConsistent\":%s,\"quiesced\":%s,\"ok\":%s}\n", lead, consistent ? "true" : "false",
         quiesced ? "true" : "false", bad ? "false" : "true");
  return bad;
}

/* ---- writing ---- */

static volatile sig_atomic_t quiet;
static void on_signal(int number) { quiet = number == SIGUSR1; }

static void append(int fd, const char *path, char type, u64 seq) {
  char bytes[RECORD + 1];
  int used = snprintf(bytes, sizeof bytes, "UMBRA1 %c %010llu mono=%017.6f real=%017.6f ", type, seq,
                      now(CLOCK_MONOTONIC), now(CLOCK_REALTIME));
  u64 noise = seq * 0x9E3779B97F4A7C15ull + 1; /* not zeros: a hole or a stale block must not look like a record */
  for (; used < RECORD - TAIL; used++) {
    noise ^= noise << 13, noise ^= noise >> 7, noise ^= noise << 17;
    bytes[used] = 'a' + noise % 26;
  }
  snprintf(bytes + used, TAIL + 1, " crc=%08x\n", crc32(bytes, RECORD - TAIL));
  for (int done = 0; done < RECORD;) {
    ssize_t count = write(fd, bytes + done, RECORD - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) { perror(path); exit(3); }
    done += count;
  }
  if (fsync(fd)) { perror(path); exit(3); }
}

static void hold_still(int *fds, char **paths, int count, u64 seq) {
  for (int i = 0; i < count; i++) append(fds[i], paths[i], 'Q', seq);
  int flag = open(QUIET_FLAG, O_CREAT | O_WRONLY | O_TRUNC, 0644); /* tells the hook that we are quiet */
  if (flag >= 0) { dprintf(flag, "%llu\n", seq); close(flag); }
  double since = now(CLOCK_MONOTONIC);
  while (quiet && now(CLOCK_MONOTONIC) - since < QUIET_MAX_S) nap(0.005);
  quiet = 0;
  unlink(QUIET_FLAG);
}

static int write_logs(int count, char **paths, int rate) {
  struct log logs[MAX_LOGS];
  int fds[MAX_LOGS];
  u64 seq = 0;
  struct sigaction action = {.sa_handler = on_signal};
  sigaction(SIGUSR1, &action, NULL);
  sigaction(SIGUSR2, &action, NULL);
  unlink(QUIET_FLAG);
  open_logs(logs, fds, count, paths, O_RDWR | O_CREAT | O_APPEND, 0);
  for (int i = 0; i < count; i++) {
    if (fds[i] < 0 || ftruncate(fds[i], logs[i].good)) { perror(paths[i]); return 2; }
    if (logs[i].last > seq) seq = logs[i].last;
  }
  for (int i = 0; i < count; i++) { /* a crash between two logs: bring the later one up, and mark it */
    for (u64 missing = logs[i].last + 1; missing <= seq; missing++) append(fds[i], paths[i], 'R', missing);
    append(fds[i], paths[i], 'B', seq);
  }
  fprintf(stderr, "umbra-writer: starts after record %llu\n", seq);
  for (;;) {
    if (quiet) hold_still(fds, paths, count, seq);
    seq++;
    for (int i = 0; i < count; i++) append(fds[i], paths[i], 'W', seq);
    if (rate > 0) nap(1.0 / rate);
  }
}

int main(int count, char **words) {
  const char *mode = count > 1 ? words[1] : "";
  u64 number = strcmp(mode, "write") == 0 ? 20 : 0;
  int at = 2;
  if (at + 1 < count && (!strcmp(words[at], "-r") || !strcmp(words[at], "-f"))) {
    number = strtoull(words[at + 1], NULL, 10);
    at += 2;
  }
  int logs = count - at;
  if (logs >= 1 && logs <= MAX_LOGS && !strcmp(mode, "write")) return write_logs(logs, words + at, (int)number);
  if (logs >= 1 && logs <= MAX_LOGS && !strcmp(mode, "verify")) return verify(logs, words + at, number);
  fprintf(stderr, "usage: umbra-writer write [-r RATE] LOG... | verify [-f SEQ] LOG...\n");
  return 64;
}
