/*
 * The queue's protocol for a table of chunks with live changes (sync on), explored exhaustively by spin.
 *
 * In every reachable state: a write commits only for a claim that still holds; no row has two sets of vectors; when no
 * job is queued or running, the destination is the source. At every end: each job is done, for a worker lives.
 *
 * Time is not modelled: between any two steps anything may happen, for as long as it likes. That is what a pause
 * (SIGSTOP), a slow model and a slow network are; and so a lease may run out at any moment. What is atomic here is one
 * statement in PostgreSQL, or a whole transaction where nothing in it can meet another one. The destination has no
 * unique index: where there is one, it turns a second set into a unique violation.
 *
 * Each step names the statement it stands for, in sql/. Guards are left out, one at a time, with -DNO_…: see README.md.
 */

#ifndef CHANGES
#define CHANGES 2   /* transactions of the user */
#endif
#ifndef FAULTS
#define FAULTS 1    /* leases run out, a death, connections cut, jobs given back */
#endif
#ifndef THEFTS
#define THEFTS 0    /* of what is left of a running range */
#endif

#define ROWS 2
#define TEXTS 2     /* a row's text is 1 or 2; 0: there is no such row */
#define WORKERS 2
#define JOBS 5      /* unfinished at a time */

#define OLD(process) (WORKERS + process)    /* in place of a worker: any id that the process had before this one */
#define NOBODY 255
#define NONE 255

mtype = { queued, running };                /* a job's state; 0: done, and its place is free */
mtype = { leave, write, clear, requeue };   /* what a slice does to its row */
mtype = { shared, exclusive };              /* the advisory lock */

typedef Job {
    mtype state;
    bool keys;              /* a list of keys; else the range, which covers all rows */
    byte checkpoint;        /* its next row: a slice is one row */
    byte end;
    byte epoch;
    byte worker = NOBODY
};

byte source[ROWS];          /* committed text of each row */
byte destination[ROWS];     /* committed sets of vectors of each row: one bit for each text they were made of */
Job jobs[JOBS];

bool gone[WORKERS];         /* the process's present id was declared dead */
bool dead;                  /* process 1 runs no more: which of them it is makes no difference */

byte job[WORKERS] = NONE;   /* what the process's slice in hand belongs to */
byte holds[WORKERS] = NONE; /* the job whose row its open transaction has locked */
mtype advisory[WORKERS];    /* the lock that this holds */

byte changes = CHANGES;
byte faults = FAULTS;
byte thefts = THEFTS;

#define BIT(n) (1 << (n))
#define CURRENT(row) (source[row] != 0 && (destination[row] & BIT(source[row])) != 0)
#define RIGHT(row) (destination[row] == (source[row] -> BIT(source[row]) : 0))
#define IDLE (jobs[0].state == 0 && jobs[1].state == 0 && jobs[2].state == 0 && jobs[3].state == 0 \
    && jobs[4].state == 0)
#define LOCKED(j) (holds[0] == j || holds[1] == j)

/* A list of keys for rows first … past - 1: by a trigger in the user's transaction, or by writing.sql, requeue. */
inline add_keys(first, past) {
    d_step {
        do
        :: jobs[new].state != 0 -> new++
        :: else -> break
        od;
        jobs[new].state = queued;
        jobs[new].keys = true;
        jobs[new].checkpoint = first;
        jobs[new].end = past;
        new = 0
    }
}

inline change(row, by) {
    source[row] = (source[row] + by) % (TEXTS + 1)
}

/* A transaction inserts, updates or deletes one row or both. */
proctype User() {
    byte new;
end:
    do
    :: atomic { changes > 0 -> changes--; change(0, 1); add_keys(0, 1) }
    :: atomic { changes > 0 -> changes--; change(0, 2); add_keys(0, 1) }
    :: atomic { changes > 0 -> changes--; change(1, 1); add_keys(1, 2) }
    :: atomic { changes > 0 -> changes--; change(1, 2); add_keys(1, 2) }
    :: atomic { changes > 0 -> changes--; change(0, 1); change(1, 1); add_keys(0, 2) }
    :: atomic { changes > 0 -> changes--; change(0, 2); change(1, 2); add_keys(0, 2) }
    od
}

inline give_back(j) {
    jobs[j].state = queued;
    jobs[j].worker = NOBODY
}

inline forget_job(j) {
    jobs[j].state = 0;
    jobs[j].keys = 0;
    jobs[j].checkpoint = 0;
    jobs[j].end = 0;
    jobs[j].worker = NOBODY
}

/* queue.sql, claim. */
#define CLAIMABLE(j) (jobs[j].state == queued && !gone[me])
inline claim(j) {
    jobs[j].state = running;
    jobs[j].epoch++;
    jobs[j].worker = me
}
/* queue.sql, claim_keys: other lists that are queued become part of this one. With -DSINGLY they do not. */
inline merge(j) {
    if
#ifndef SINGLY
    :: jobs[j].keys ->
        do
        :: new < JOBS ->
            if
            :: new != j && jobs[new].keys && jobs[new].state == queued ->
                jobs[j].checkpoint = (jobs[new].checkpoint < jobs[j].checkpoint -> 0 : jobs[j].checkpoint);
                jobs[j].end = (jobs[new].end > jobs[j].end -> ROWS : jobs[j].end);
                forget_job(new);
                jobs[new].epoch = (job[1 - me] == new -> jobs[new].epoch : 0)
            :: else
            fi;
            new++
        :: else -> break
        od;
        new = 0
#endif
    :: else
    fi
}
/* reading.sql, read_range and read_keys: what is current is left out. */
inline read() {
    seen = (CURRENT(at) -> 0 : source[at])
}
inline claim_and_read(j) {
    d_step {
        merge(j);
        claim(j);
        job[me] = j;
        keys = jobs[j].keys;
        at = jobs[j].checkpoint;
        end = jobs[j].end;
        epoch = jobs[j].epoch;
        worker = me;
        read()
    }
}

/* stealing.sql, take: the range of somebody else loses what lies beyond its next row to a job of the thief's. That this row
   may have been read already, or that its owner may be dead, is nothing to the thief; that the row is locked is. */
#define STEALABLE(j) (thefts > 0 && jobs[j].state == running && !jobs[j].keys && jobs[j].worker != me && !gone[me] \
    && !LOCKED(j) && jobs[j].checkpoint + 1 < jobs[j].end)
inline steal_and_read(j) {
    d_step {
        thefts--;
        do
        :: jobs[new].state != 0 -> new++
        :: else -> break
        od;
        jobs[new].state = queued;
        jobs[new].checkpoint = jobs[j].checkpoint + 1;
        jobs[new].end = jobs[j].end;
        jobs[j].end = jobs[new].checkpoint;
        /* The epoch of a place that was used before goes on; nobody has seen this job. */
        claim(new);
        job[me] = new;
        at = jobs[new].checkpoint;
        end = jobs[new].end;
        epoch = jobs[new].epoch;
        worker = me;
        new = 0;
        read()
    }
}

/* queue.sql, beat: AND NOT gone. Its process then registers afresh; what it had claimed stays with its old id. */
#ifdef NO_ATOMIC_DEATH
#define HEARS_THAT_IT_IS_GONE false
#else
#define HEARS_THAT_IT_IS_GONE gone[me]
#endif
inline register() {
    d_step {
        gone[me] = false;
        worker = OLD(me);
        do
        :: new < JOBS ->
            jobs[new].worker = (jobs[new].worker == me -> OLD(me) : jobs[new].worker);
            new++
        :: else -> break
        od;
        new = 0
    }
}

/* writing.sql, fence. */
#define JOB jobs[job[me]]
#define STILL_MINE (JOB.state == running && JOB.worker == worker && JOB.epoch == epoch)
#ifdef NO_EPOCH
#define FENCE (JOB.state == running && JOB.worker == worker && JOB.checkpoint == at && JOB.end == end)
#else
#ifdef NO_BOUND
#define FENCE (STILL_MINE && JOB.checkpoint == at)
#else
#define FENCE (STILL_MINE && JOB.checkpoint == at && JOB.end == end)
#endif
#endif

/* What the second look makes of a row that is there. */
inline look() {
    if
    :: seen == source[at] -> plan = write
    :: seen != source[at] && seen != 0 -> plan = requeue
    :: seen == 0 && CURRENT(at) -> plan = leave
#ifdef NO_LOOK_AT_CURRENT
    :: seen == 0 && !CURRENT(at) -> plan = leave
#else
    :: seen == 0 && !CURRENT(at) -> plan = requeue
#endif
    fi
}

/* writing.sql: delete_listed and copy, requeue, checkpoint, finish or finish_list; all visible at once. */
inline commit() {
#ifndef DAMAGE_ONLY
    assert(STILL_MINE);
#endif
    destination[at] = destination[at] & ~old;
    if
    :: plan == write -> assert(destination[at] == 0); destination[at] = BIT(seen)
    :: plan != write
    fi;
    JOB.checkpoint = at + 1;
    if
    :: at + 1 == end -> d_step { forget_job(job[me]) }
    :: at + 1 != end
    fi;
    if
    :: plan == requeue -> add_keys(at, at + 1)
    :: plan != requeue
    fi
}

inline roll_back(process) {
    holds[process] = NONE;
    advisory[process] = 0
}

inline end_transaction() {
    roll_back(me);
    old = 0;
    plan = 0
}

/* An epoch that nobody can compare any more is forgotten, so that states which behave alike are one. */
inline drop() {
    d_step {
        if
        :: job[me] == NONE
        :: job[me] != NONE && JOB.state != running && job[1 - me] != job[me] -> JOB.epoch = 0
        :: else
        fi;
        job[me] = NONE;
        keys = 0;
        at = 0;
        end = 0;
        epoch = 0;
        worker = 0;
        seen = 0;
        old = 0;
        plan = 0;
        ahead = 0
    }
}

proctype Worker(byte me) {
    /* The job of the slice in hand, as it was when that was read. */
    bool keys;
    byte at, end, epoch, worker;
    byte ahead;         /* the epoch under which the same process has claimed that job again */
    byte seen;          /* the text that was read and embedded; 0: there was none, or it was current */
    mtype plan;
    byte old;           /* sets of vectors that the open transaction has deleted */
    byte new;
    {
    skip;
end_idle:
    /* A claim that is not read from at once could as well be made later. */
    if
    :: atomic { CLAIMABLE(0) -> claim_and_read(0) }
    :: atomic { CLAIMABLE(1) -> claim_and_read(1) }
    :: atomic { CLAIMABLE(2) -> claim_and_read(2) }
    :: atomic { CLAIMABLE(3) -> claim_and_read(3) }
    :: atomic { CLAIMABLE(4) -> claim_and_read(4) }
#if THEFTS
    :: atomic { STEALABLE(0) -> steal_and_read(0) }
    :: atomic { STEALABLE(1) -> steal_and_read(1) }
    :: atomic { STEALABLE(2) -> steal_and_read(2) }
    :: atomic { STEALABLE(3) -> steal_and_read(3) }
    :: atomic { STEALABLE(4) -> steal_and_read(4) }
#endif
    :: atomic { HEARS_THAT_IT_IS_GONE -> register(); goto end_idle }
    fi;

embed:
    /* Nothing is open in the database. The job may be lost here, and claimed by the same process again, under a new id
       or the old one, before the slice is written. Other work of that process could as well be another worker's. */
    if
    :: atomic { HEARS_THAT_IT_IS_GONE -> register(); goto embed }
    :: atomic {
        /* queue.sql, release: the vectorizer was blocked, and then resumed. */
        faults > 0 && STILL_MINE && worker == me -> faults--; give_back(job[me]); goto embed
    }
    :: atomic {
        ahead == 0 && !STILL_MINE && CLAIMABLE(job[me]) -> claim(job[me]); ahead = JOB.epoch; goto embed
    }
#ifdef NO_FENCE
    :: skip
#else
    :: atomic { FENCE && !LOCKED(job[me]) -> holds[me] = job[me] }
    :: atomic {
        !FENCE ->
        if
        :: STILL_MINE && JOB.checkpoint == at + 1 -> /* queue.sql, reread: it had been committed after all. */
            at++;
            end = JOB.end;
            goto next
#if THEFTS
        :: STILL_MINE && JOB.checkpoint == at && JOB.end != end -> /* queue.sql, reread: it ends earlier now. */
            end = JOB.end;
            goto embed
#endif
        :: else -> goto over
        fi
    }
#endif
    fi;

#ifndef NO_LOCK
    /* writing.sql, lock_shared and lock_exclusive. */
    if
    :: atomic { !keys && advisory[1 - me] != exclusive -> advisory[me] = shared }
    :: atomic { keys && advisory[1 - me] == 0 -> advisory[me] = exclusive }
    fi;
#endif

    /* The second look: new statements, which see what is committed by now. */
#ifdef NO_RECHECK
    plan = (seen == 0 -> leave : write);
#else
    if
    :: atomic { source[at] != 0 -> look(); if :: keys -> goto delete :: !keys fi }
    :: atomic { keys && source[at] == 0 -> plan = clear; goto delete }              /* writing.sql, present_keys */
    :: atomic { !keys && source[at] == 0 -> plan = (seen == 0 -> leave : write) }   /* moved_in_range: not in it */
    fi;
    if
    :: atomic { seen != 0 && source[at] == 0 -> plan = leave }                      /* count_and_gone */
    :: else
    fi;
#endif

delete:
    /* writing.sql, delete_listed, and for a range delete_orphans, which looks at the source for itself. */
    if
    :: atomic { plan == write || plan == clear || !keys && source[at] == 0 -> old = destination[at] }
    :: else
    fi;

    if
    :: atomic {
        commit();
        end_transaction();
        if
        :: at + 1 == end -> goto over
        :: else -> at++
        fi
    }
    :: atomic {
        /* It committed, and the connection broke before the worker heard of it: it writes again. */
        faults > 0 -> faults--; commit(); end_transaction(); goto embed
    }
    :: atomic {
        /* The connection broke before, or PostgreSQL refused: it writes again. */
        faults > 0 -> faults--; end_transaction(); goto embed
    }
    fi;

next:
    atomic { read(); goto embed }

over:
    /* On with what was claimed ahead, if it is still there: read from its checkpoint. */
    atomic {
        if
        :: ahead != 0 && JOB.state == running && JOB.epoch == ahead ->
            keys = JOB.keys;
            at = JOB.checkpoint;
            end = JOB.end;
            epoch = ahead;
            worker = JOB.worker;
            ahead = 0;
            goto next
        :: else -> drop(); goto end_idle
        fi
    }
    } unless { atomic { dead && me == 1 -> drop() } }
}

/* The heartbeats' judgement. queue.sql, mark_gone; then reclaim, in a transaction of its own. */
#define OWNS(w) (jobs[0].worker == w || jobs[1].worker == w || jobs[2].worker == w || jobs[3].worker == w \
    || jobs[4].worker == w)
#define ORPHANED(j) (jobs[j].state == running && !LOCKED(j) \
    && (jobs[j].worker >= WORKERS || gone[jobs[j].worker]))
proctype Judge() {
end:
    do
    :: atomic { faults > 0 && OWNS(0) && !gone[0] -> faults--; gone[0] = true }
    :: atomic { faults > 0 && OWNS(1) && !gone[1] && !dead -> faults--; gone[1] = true }
    :: atomic { dead && !gone[1] -> gone[1] = true }
    :: atomic { ORPHANED(0) -> give_back(0) }
    :: atomic { ORPHANED(1) -> give_back(1) }
    :: atomic { ORPHANED(2) -> give_back(2) }
    :: atomic { ORPHANED(3) -> give_back(3) }
    :: atomic { ORPHANED(4) -> give_back(4) }
    od
}

/* A process stops for ever, at any step. */
proctype Death() {
end:
    atomic { faults > 0 && OWNS(1) -> faults--; dead = true }
}

#ifndef NO_SESSION_TIMEOUT
/* PostgreSQL ends the transaction of a client that is gone, or silent: idle_in_transaction_session_timeout. */
proctype Server() {
end:
    atomic { dead && (holds[1] != NONE || advisory[1] != 0) -> roll_back(1) }
}
#endif

proctype Observer() {
end:
    do
    :: atomic { IDLE && !(RIGHT(0) && RIGHT(1)) -> assert(RIGHT(0) && RIGHT(1)) }
    :: atomic { timeout -> assert(IDLE); break }
    od
}

init {
    atomic {
        /* Before sync was switched on: one row's vectors are of an older text, the other's are current. */
        source[0] = 1;
        source[1] = 1;
        destination[0] = BIT(2);
        destination[1] = BIT(1);
        jobs[0].state = queued;
        jobs[0].end = ROWS;
        run Worker(0);
        run Worker(1);
        run User();
        run Judge();
        run Death();
#ifndef NO_SESSION_TIMEOUT
        run Server();
#endif
        run Observer()
    }
}
