// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of guest_memfd's claims: what may go on while a conversion works, and what
 * has to wait.  The rest of the world is the thread that converts, from within a hook, as
 * far as it may go on, and another if it has to wait.
 *
 * gmem_core_test.c includes this file, and has the double of a VM type.
 */

#define CLAIM_START	2
#define CLAIM_END	(CLAIM_START + GMEM_SHORT_PAGES + 1)

#define THREAD_TIMEOUT	(30 * HZ)

static bool other_rests(struct task_struct *task)
{
	return READ_ONCE(task->__state) & (TASK_INTERRUPTIBLE | TASK_UNINTERRUPTIBLE);
}

static void start_other(int (*fn)(void *arg))
{
	dbl->waiter = kthread_create(fn, dbl, "gmem_waiter");
	if (IS_ERR(dbl->waiter)) {
		KUNIT_FAIL(dbl->test, "no thread: %ld", PTR_ERR(dbl->waiter));
		dbl->waiter = NULL;
		return;
	}
	get_task_struct(dbl->waiter);
	init_completion(&dbl->waiter_done);
	wake_up_process(dbl->waiter);
}

/* Start a thread that has to wait for this conversion, and let it get that far. */
static void start_waiter(int (*fn)(void *arg))
{
	unsigned long end = jiffies + THREAD_TIMEOUT;

	if (dbl->waiter)
		return;

	start_other(fn);
	while (!other_rests(dbl->waiter) && !completion_done(&dbl->waiter_done) &&
	       time_before(jiffies, end))
		schedule_timeout_uninterruptible(1);
	KUNIT_EXPECT_TRUE(dbl->test, other_rests(dbl->waiter));
	KUNIT_EXPECT_FALSE(dbl->test, completion_done(&dbl->waiter_done));
}

/* The thread goes on sleeping, although something has happened that might wake it. */
static void expect_rest(void)
{
	schedule_timeout_uninterruptible(HZ / 20);
	KUNIT_EXPECT_TRUE(dbl->test, other_rests(dbl->waiter));
	KUNIT_EXPECT_FALSE(dbl->test, completion_done(&dbl->waiter_done));
}

/* Wait for the thread to end.  What did it get? */
static int end_other(void)
{
	if (!dbl->waiter)
		return -ESRCH;

	if (!wait_for_completion_timeout(&dbl->waiter_done, THREAD_TIMEOUT)) {
		KUNIT_FAIL(dbl->test, "The other thread waits for ever");
		return -ETIMEDOUT;
	}
	put_task_struct(dbl->waiter);
	dbl->waiter = NULL;
	return dbl->waiter_r;
}

static int other_is_done(int r)
{
	dbl->waiter_r = r;
	complete(&dbl->waiter_done);
	return 0;
}

static bool is_locked_out(pgoff_t start, pgoff_t end)
{
	if (!kvm_gmem_trylock_range(dbl->f->inode, start, end))
		return true;

	kvm_gmem_unlock_range(dbl->f->inode);
	return false;
}

static int fault_beside(void *arg)
{
	kvm_pfn_t pfn;

	return other_is_done(get_pfn(CLAIM_END, &pfn));
}

static void use_rest_of_file(void)
{
	struct kunit *test = dbl->test;

	if (double_is_locked()) {
		KUNIT_FAIL(test, "invalidate_lock is held");
		return;
	}
	KUNIT_EXPECT_TRUE(test, is_locked_out(CLAIM_START, CLAIM_START + 1));
	KUNIT_EXPECT_TRUE(test, is_locked_out(CLAIM_END - 1, CLAIM_END));
	KUNIT_EXPECT_TRUE(test, is_locked_out(0, NR_PAGES));
	KUNIT_EXPECT_FALSE(test, is_locked_out(CLAIM_START - 1, CLAIM_START));
	KUNIT_EXPECT_FALSE(test, is_locked_out(CLAIM_END, CLAIM_END + 1));

	/* The pages beside the range, of either state, come and are accounted. */
	fill(CLAIM_START - 1, 0x11);
	fill(CLAIM_END, 0x22);
	start_other(fault_beside);
	KUNIT_EXPECT_EQ(test, end_other(), 0);
}

static void gmem_claim_elsewhere(struct kunit *test)
{
	KUNIT_ASSERT_EQ(test, convert(CLAIM_START, NR_PAGES, true, 0), 0);
	fill(CLAIM_START + 1, 0x33);
	fill(CLAIM_END - 1, 0x44);

	dbl->in_hook = use_rest_of_file;
	KUNIT_EXPECT_EQ(test, convert(CLAIM_START, CLAIM_END, false, 0), 0);
	dbl->in_hook = NULL;
	KUNIT_EXPECT_EQ(test, dbl->nr_in_hook, 2);
	KUNIT_EXPECT_EQ(test, dbl->kvm->mmu_invalidate_in_progress, 0);

	KUNIT_EXPECT_FALSE(test, is_locked_out(0, NR_PAGES));
	expect_state(test, 0, CLAIM_END, false);
	expect_state(test, CLAIM_END, NR_PAGES, true);
	KUNIT_EXPECT_EQ(test, byte_at(CLAIM_START + 1), 0x33);
	KUNIT_EXPECT_EQ(test, byte_at(CLAIM_END - 1), 0x44);
	KUNIT_EXPECT_EQ(test, byte_at(CLAIM_START - 1), 0x11);
	KUNIT_EXPECT_EQ(test, byte_at(CLAIM_END), 0x22);
	expect_accounts(test);
}

static void expect_locked(void)
{
	KUNIT_EXPECT_TRUE(dbl->test, double_is_locked());
}

static void gmem_claim_short(struct kunit *test)
{
	KUNIT_ASSERT_EQ(test, convert(0, NR_PAGES, true, 0), 0);
	fill(CLAIM_START, 0x33);

	dbl->in_hook = expect_locked;
	KUNIT_EXPECT_EQ(test, convert(CLAIM_START, CLAIM_END - 1, false, 0), 0);
	dbl->in_hook = NULL;
	KUNIT_EXPECT_EQ(test, dbl->nr_in_hook, 1);

	/* Nor is one large folio too long.  Pretend that there may be one for all of it. */
	GMEM_I(dbl->f->inode)->max_order = ilog2(NR_PAGES);
	dbl->in_hook = expect_locked;
	KUNIT_EXPECT_EQ(test, convert(0, NR_PAGES, true, DISCARD), 0);
	dbl->in_hook = NULL;
	KUNIT_EXPECT_EQ(test, dbl->nr_in_hook, 3);
}

/* What leaves the file is counted while other pages come. */
static void gmem_claim_discard(struct kunit *test)
{
	KUNIT_ASSERT_EQ(test, convert(CLAIM_START + 2, NR_PAGES, true, 0), 0);
	fill(CLAIM_START, 0x33);
	fill(CLAIM_START + 4, 0x44);

	dbl->in_hook = use_rest_of_file;
	KUNIT_EXPECT_EQ(test, convert(CLAIM_START, CLAIM_END, true, DISCARD), 0);
	dbl->in_hook = NULL;
	KUNIT_EXPECT_EQ(test, dbl->nr_in_hook, 2);

	expect_state(test, CLAIM_START, NR_PAGES, true);
	KUNIT_EXPECT_EQ(test, byte_at(CLAIM_START), -1);
	KUNIT_EXPECT_EQ(test, byte_at(CLAIM_START + 4), -1);
	expect_accounts(test);
}

/* A conversion that fails ends its claim, too. */
static void gmem_claim_refused(struct kunit *test)
{
	struct folio *held;
	pgoff_t error;

	fill(CLAIM_START + 3, 0x33);
	held = filemap_get_folio(dbl->f->inode->i_mapping, CLAIM_START + 3);
	KUNIT_ASSERT_FALSE(test, IS_ERR(held));
	start_here();

	KUNIT_EXPECT_EQ(test, try_convert(CLAIM_START, CLAIM_END, true, 0, &error), -EAGAIN);
	KUNIT_EXPECT_EQ(test, error, CLAIM_START + 3);
	EXPECT_EVENTS(test, { MAY_CONVERT, CLAIM_START, CLAIM_END });
	KUNIT_EXPECT_FALSE(test, is_locked_out(0, NR_PAGES));
	expect_state(test, 0, NR_PAGES, false);

	folio_put(held);
	KUNIT_EXPECT_EQ(test, convert(CLAIM_START, CLAIM_END, true, 0), 0);

	fail_hook(RECLAIM, 1, -EBUSY);
	KUNIT_EXPECT_EQ(test, convert(CLAIM_START, CLAIM_END, false, DISCARD), -EBUSY);
	KUNIT_EXPECT_FALSE(test, is_locked_out(0, NR_PAGES));
	expect_state(test, CLAIM_START, CLAIM_END, true);
}

static int killed_conversion(void *arg)
{
	int r;

	allow_signal(SIGKILL);
	send_sig(SIGKILL, current, 1);

	kthread_use_mm(dbl->kvm->mm);
	r = convert(CLAIM_START, CLAIM_END, true, 0);
	kthread_unuse_mm(dbl->kvm->mm);

	return other_is_done(r);
}

static void gmem_claim_killed(struct kunit *test)
{
	fill(CLAIM_START + 3, 0x33);
	start_other(killed_conversion);
	KUNIT_EXPECT_EQ(test, end_other(), -EINTR);
	KUNIT_EXPECT_FALSE(test, is_locked_out(0, NR_PAGES));
	expect_state(test, 0, NR_PAGES, false);
	expect_accounts(test);
}

/* Lock the folio until the conversion has been waiting for a while. */
static int folio_locking_thread(void *arg)
{
	unsigned long end = jiffies + THREAD_TIMEOUT;
	struct folio *folio;
	int nr = 0;

	folio = filemap_lock_folio(dbl->f->inode->i_mapping, CLAIM_START);
	if (IS_ERR(folio))
		return other_is_done(PTR_ERR(folio));

	while (nr < HZ / 20 && time_before(jiffies, end)) {
		schedule_timeout_uninterruptible(1);
		nr = is_locked_out(CLAIM_START, CLAIM_START + 1) && other_rests(dbl->converter) ?
		     nr + 1 : 0;
	}

	/* Without a moment at which it isn't locked and still held; the file has it. */
	folio_put(folio);
	folio_unlock(folio);
	return other_is_done(nr ? 0 : -ETIMEDOUT);
}

/* A user fault that has its page, but not mapped it yet, is no holder: wait for it. */
static void gmem_claim_waits_for_folio(struct kunit *test)
{
	struct folio *folio;

	fill(CLAIM_START, 0x33);
	folio = filemap_get_folio(dbl->f->inode->i_mapping, CLAIM_START);
	KUNIT_ASSERT_FALSE(test, IS_ERR(folio));

	dbl->converter = current;
	start_other(folio_locking_thread);
	while (!folio_test_locked(folio) && !completion_done(&dbl->waiter_done))
		schedule_timeout_uninterruptible(1);
	folio_put(folio);

	KUNIT_EXPECT_EQ(test, convert(CLAIM_START, CLAIM_END, true, 0), 0);
	KUNIT_EXPECT_EQ(test, end_other(), 0);
	expect_state(test, CLAIM_START, CLAIM_END, true);
	KUNIT_EXPECT_EQ(test, byte_at(CLAIM_START), 0x33);
}

/* Run @in_hook, which starts a waiter, in a conversion to shared. */
static void convert_with_waiter(void (*in_hook)(void))
{
	KUNIT_ASSERT_EQ(dbl->test, convert(0, NR_PAGES, true, 0), 0);
	fill(CLAIM_START + 1, 0x33);
	start_here();

	dbl->in_hook = in_hook;
	KUNIT_EXPECT_EQ(dbl->test, convert(CLAIM_START, CLAIM_END, false, 0), 0);
	dbl->in_hook = NULL;
}

static int faulting_thread(void *arg)
{
	kvm_pfn_t pfn;

	return other_is_done(get_pfn(CLAIM_END - 1, &pfn));
}

static void fault_in_hook(void)
{
	start_waiter(faulting_thread);
}

/* A guest's fault in the range waits, and finds what the conversion has made. */
static void gmem_claim_fault(struct kunit *test)
{
	convert_with_waiter(fault_in_hook);
	KUNIT_EXPECT_EQ(test, end_other(), 0);
	/* Shared: the platform wasn't asked to give the guest a private page. */
	EXPECT_EVENTS(test, { MAY_CONVERT, CLAIM_START, CLAIM_END },
		      { INVALIDATE, CLAIM_START, CLAIM_END }, { MOVE, CLAIM_START, CLAIM_END },
		      { MAKE_SHARED, CLAIM_START + 1, CLAIM_START + 2 },
		      { INVALIDATE, CLAIM_START, CLAIM_END });
	expect_accounts(test);
}

static int mapping_thread(void *arg)
{
	return other_is_done(try_map_page(CLAIM_END - 1, true));
}

static void map_in_hook(void)
{
	start_waiter(mapping_thread);
}

static void gmem_claim_map(struct kunit *test)
{
	convert_with_waiter(map_in_hook);
	KUNIT_EXPECT_EQ(test, end_other(), -EACCES);
}

static int allocating_thread(void *arg)
{
	return other_is_done(allocate(0, NR_PAGES));
}

static void allocate_in_hook(void)
{
	start_waiter(allocating_thread);
}

static void gmem_claim_allocate(struct kunit *test)
{
	convert_with_waiter(allocate_in_hook);
	KUNIT_EXPECT_EQ(test, end_other(), 0);
	KUNIT_EXPECT_EQ(test, dbl->f->inode->i_mapping->nrpages, NR_PAGES);
	expect_accounts(test);
}

static int punching_thread(void *arg)
{
	int r;

	/* Or it wouldn't be allowed to. */
	kthread_use_mm(dbl->kvm->mm);
	r = punch(NR_PAGES - 1, NR_PAGES);
	kthread_unuse_mm(dbl->kvm->mm);

	return other_is_done(r);
}

static void punch_in_hook(void)
{
	start_waiter(punching_thread);
}

/* Another change of the file has to wait, wherever it is. */
static void gmem_claim_punch(struct kunit *test)
{
	fill(NR_PAGES - 1, 0x77);
	convert_with_waiter(punch_in_hook);
	KUNIT_EXPECT_EQ(test, end_other(), 0);
	KUNIT_EXPECT_EQ(test, byte_at(NR_PAGES - 1), -1);
}

static int sync_beside(void *arg)
{
	kvm_gmem_sync_state(get_slot(), BASE_GFN + CLAIM_END);
	return other_is_done(0);
}

static int syncing_thread(void *arg)
{
	kvm_gmem_sync_state(get_slot(), BASE_GFN + CLAIM_START);
	return other_is_done(0);
}

static void sync_in_hook(void)
{
	/* Elsewhere there is nothing to wait for. */
	start_other(sync_beside);
	end_other();

	start_waiter(syncing_thread);
}

static void gmem_claim_sync(struct kunit *test)
{
	convert_with_waiter(sync_in_hook);
	KUNIT_EXPECT_EQ(test, end_other(), 0);
}

static void init_asker(struct kunit *test)
{
	dbl->asker = kunit_kzalloc(test, sizeof(*dbl->asker), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, dbl->asker);
	dbl->asker->kvm = dbl->kvm;
	spin_lock_init(&dbl->asker->gmem_request.lock);
}

static bool ask_to_share(pgoff_t index, u64 nr)
{
	guard(srcu)(&dbl->kvm->srcu);

	return kvm_gmem_open_request(dbl->asker, KVM_GMEM_REQUEST_SHARE, BASE_GFN + index, nr);
}

/* A request is for pages of one slot. */
static void gmem_claim_request(struct kunit *test)
{
	init_asker(test);
	KUNIT_EXPECT_FALSE(test, ask_to_share(0, NR_PAGES + 1));
	KUNIT_EXPECT_FALSE(test, ask_to_share(NR_PAGES - 1, 2));
	KUNIT_EXPECT_FALSE(test, ask_to_share(1, U64_MAX));
	KUNIT_EXPECT_FALSE(test, ask_to_share(NR_PAGES, 1));
	KUNIT_EXPECT_EQ(test, kvm_gmem_close_request(dbl->asker), KVM_GMEM_REQUEST_NONE);

	KUNIT_EXPECT_TRUE(test, ask_to_share(0, NR_PAGES));
	KUNIT_EXPECT_EQ(test, kvm_gmem_close_request(dbl->asker), KVM_GMEM_REQUEST_SHARE);
	KUNIT_EXPECT_EQ(test, kvm_gmem_close_request(dbl->asker), KVM_GMEM_REQUEST_NONE);
}

static int closing_thread(void *arg)
{
	return other_is_done(kvm_gmem_close_request(dbl->asker));
}

static void close_in_hook(void)
{
	start_waiter(closing_thread);
}

/* A vCPU goes on when no conversion relies on its request any more. */
static void gmem_claim_close(struct kunit *test)
{
	init_asker(test);
	KUNIT_ASSERT_TRUE(test, ask_to_share(CLAIM_START, CLAIM_END - CLAIM_START));
	convert_with_waiter(close_in_hook);
	KUNIT_EXPECT_EQ(test, end_other(), KVM_GMEM_REQUEST_SHARE);
}

/* A conversion that is refused lets those go on that have waited for it, too. */
static void gmem_claim_refused_wakes(struct kunit *test)
{
	fill(CLAIM_START, 0x33);
	start_here();

	fail_hook(RECLAIM, 1, -EAGAIN);
	dbl->in_hook = fault_in_hook;
	KUNIT_EXPECT_EQ(test, convert(CLAIM_START, CLAIM_END, true, DISCARD), -EAGAIN);
	dbl->in_hook = NULL;
	KUNIT_EXPECT_EQ(test, end_other(), 0);
	EXPECT_EVENTS(test, { RECLAIM, CLAIM_START, CLAIM_END });
	KUNIT_EXPECT_EQ(test, dbl->kvm->mmu_invalidate_in_progress, 0);
	expect_state(test, 0, NR_PAGES, false);
	KUNIT_EXPECT_EQ(test, byte_at(CLAIM_START), 0x33);
	KUNIT_EXPECT_EQ(test, byte_at(CLAIM_END - 1), 0);
	expect_accounts(test);
}

/* Where is the first page with data, or without, at or after page @index? */
static int seek(pgoff_t index, int whence)
{
	loff_t r = dbl->file->f_op->llseek(dbl->file, index << PAGE_SHIFT, whence);

	return r < 0 ? r : r >> PAGE_SHIFT;
}

static int seek_beside(void *arg)
{
	return other_is_done(seek(CLAIM_END, SEEK_DATA));
}

static int seeking_thread(void *arg)
{
	allow_signal(SIGKILL);
	return other_is_done(seek(0, SEEK_DATA));
}

static void seek_in_hook(void)
{
	start_other(seek_beside);
	KUNIT_EXPECT_EQ(dbl->test, end_other(), NR_PAGES - 1);

	/* It begins before the claim, and might go through it. */
	start_waiter(seeking_thread);
}

static void gmem_claim_seek(struct kunit *test)
{
	fill(NR_PAGES - 1, 0x77);
	convert_with_waiter(seek_in_hook);
	KUNIT_EXPECT_EQ(test, end_other(), CLAIM_START + 1);
}

static int walk_beside(void *arg)
{
	return other_is_done(walk_gfns(CLAIM_END, NR_PAGES));
}

static int walking_thread(void *arg)
{
	return other_is_done(walk_gfns(0, NR_PAGES));
}

static void walk_in_hook(void)
{
	start_other(walk_beside);
	KUNIT_EXPECT_EQ(dbl->test, end_other(), 1);

	start_waiter(walking_thread);
}

/* A walk has references to folios, and would be in the way. */
static void gmem_claim_walk(struct kunit *test)
{
	fill(NR_PAGES - 1, 0x77);
	convert_with_waiter(walk_in_hook);
	KUNIT_EXPECT_EQ(test, end_other(), 2);
}

/* Faults of users, as far as the file has to do with them: no page table, no tree of VMAs. */

static int user_fault(pgoff_t index, enum fault_flag flags)
{
	struct mm_struct *mm = dbl->kvm->mm;
	struct vm_area_struct vma = {
		.vm_mm = mm,
		.vm_file = dbl->file,
	};
	struct vm_fault vmf = {
		.vma = &vma,
		.pgoff = index,
		.flags = flags,
	};
	vm_fault_t ret;

	mmap_read_lock(mm);
	ret = kvm_gmem_fault(&vmf);
	if (ret & VM_FAULT_LOCKED) {
		unlock_page(vmf.page);
		put_page(vmf.page);
	}

	/* Whoever is to try again has lost the lock, unless he must not wait. */
	if (!(ret & VM_FAULT_RETRY) || flags & FAULT_FLAG_RETRY_NOWAIT)
		mmap_read_unlock(mm);
	return (__force int)ret;
}

static void expect_user_fault(vm_fault_t want)
{
	KUNIT_EXPECT_EQ(dbl->test, end_other(), (__force int)want);
}

static int user_faulting_thread(void *arg)
{
	allow_signal(SIGKILL);
	return other_is_done(user_fault(CLAIM_END - 1, dbl->fault_flags));
}

static void user_fault_in_hook(void)
{
	start_waiter(user_faulting_thread);
	KUNIT_EXPECT_EQ(dbl->test, rwsem_is_locked(&dbl->kvm->mm->mmap_lock),
			!fault_flag_allow_retry_first(dbl->fault_flags));
}

/* The first time a user waits without mmap_lock; the next time he gets the page. */
static void gmem_claim_user_fault(struct kunit *test)
{
	dbl->fault_flags = FAULT_FLAG_ALLOW_RETRY;
	convert_with_waiter(user_fault_in_hook);
	expect_user_fault(VM_FAULT_RETRY);
	KUNIT_EXPECT_EQ(test, byte_at(CLAIM_END - 1), -1);

	dbl->fault_flags = FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_TRIED;
	convert_with_waiter(user_fault_in_hook);
	expect_user_fault(VM_FAULT_LOCKED);
	KUNIT_EXPECT_EQ(test, byte_at(CLAIM_END - 1), 0);
	KUNIT_ASSERT_EQ(test, punch(CLAIM_END - 1, CLAIM_END), 0);

	/* He who cannot try again gets it at once. */
	dbl->fault_flags = 0;
	convert_with_waiter(user_fault_in_hook);
	expect_user_fault(VM_FAULT_LOCKED);
	KUNIT_EXPECT_EQ(test, byte_at(CLAIM_END - 1), 0);
	expect_accounts(test);
}

/* The state that counts is that after the conversion. */
static void gmem_claim_user_fault_private(struct kunit *test)
{
	fill(CLAIM_START, 0x33);

	dbl->fault_flags = FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_TRIED;
	dbl->in_hook = user_fault_in_hook;
	KUNIT_EXPECT_EQ(test, convert(CLAIM_START, CLAIM_END, true, DISCARD), 0);
	dbl->in_hook = NULL;
	expect_user_fault(VM_FAULT_SIGBUS);
	KUNIT_EXPECT_EQ(test, byte_at(CLAIM_END - 1), -1);
}

/* A page that is refused to be private is still the user's. */
static void gmem_claim_user_fault_refused(struct kunit *test)
{
	fill(CLAIM_START, 0x33);

	fail_hook(RECLAIM, 1, -EAGAIN);
	dbl->fault_flags = FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_TRIED;
	dbl->in_hook = user_fault_in_hook;
	KUNIT_EXPECT_EQ(test, convert(CLAIM_START, CLAIM_END, true, DISCARD), -EAGAIN);
	dbl->in_hook = NULL;
	expect_user_fault(VM_FAULT_LOCKED);
	KUNIT_EXPECT_EQ(test, byte_at(CLAIM_END - 1), 0);
	expect_accounts(test);
}

#define NOWAIT	(FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_RETRY_NOWAIT)

static int nowait_thread(void *arg)
{
	return other_is_done(user_fault(CLAIM_END - 1, NOWAIT));
}

static int nowait_beside(void *arg)
{
	return other_is_done(user_fault(CLAIM_START - 1, NOWAIT));
}

static void nowait_in_hook(void)
{
	start_other(nowait_thread);
	expect_user_fault(VM_FAULT_RETRY);
	if (dbl->waiter)
		return;

	start_other(nowait_beside);
	expect_user_fault(VM_FAULT_LOCKED);
}

/* He who must not wait doesn't, and keeps mmap_lock. */
static void gmem_claim_user_fault_nowait(struct kunit *test)
{
	/* What is beside the range is the user's. */
	KUNIT_ASSERT_EQ(test, convert(CLAIM_START, CLAIM_END, true, 0), 0);
	fill(CLAIM_START + 1, 0x33);

	dbl->in_hook = nowait_in_hook;
	KUNIT_EXPECT_EQ(test, convert(CLAIM_START, CLAIM_END, false, 0), 0);
	dbl->in_hook = NULL;
	KUNIT_EXPECT_EQ(test, dbl->nr_in_hook, 1);
	KUNIT_EXPECT_EQ(test, end_other(), -ESRCH);
	KUNIT_EXPECT_EQ(test, byte_at(CLAIM_START - 1), 0);
	KUNIT_EXPECT_EQ(test, byte_at(CLAIM_END - 1), -1);
}

/* Signals, and turns. */

static int killed_fault(void *arg)
{
	kvm_pfn_t pfn;

	allow_signal(SIGKILL);
	allow_signal(SIGINT);
	return other_is_done(get_pfn(CLAIM_END - 1, &pfn));
}

static int killed_map(void *arg)
{
	allow_signal(SIGKILL);
	allow_signal(SIGINT);
	return other_is_done(try_map_page(CLAIM_END - 1, true));
}

static int interrupted_allocation(void *arg)
{
	allow_signal(SIGINT);
	return other_is_done(allocate(0, NR_PAGES));
}

static int killed_sync(void *arg)
{
	allow_signal(SIGKILL);
	return syncing_thread(arg);
}

/* @sig ends the wait while the conversion goes on.  If it kills, no other signal does. */
static void expect_end_by(int sig, int (*fn)(void *arg), int want)
{
	/* The one before has failed to end. */
	if (dbl->waiter)
		return;

	start_waiter(fn);
	if (sig == SIGKILL) {
		send_sig(SIGINT, dbl->waiter, 1);
		expect_rest();
	}
	send_sig(sig, dbl->waiter, 1);
	KUNIT_EXPECT_EQ(dbl->test, end_other(), want);
}

static void send_signals_in_hook(void)
{
	expect_end_by(SIGKILL, killed_fault, -EINTR);
	expect_end_by(SIGKILL, killed_map, -EINTR);
	expect_end_by(SIGKILL, seeking_thread, -EINTR);
	expect_end_by(SIGINT, interrupted_allocation, -EINTR);

	dbl->fault_flags = FAULT_FLAG_ALLOW_RETRY;
	expect_end_by(SIGKILL, user_faulting_thread, (__force int)VM_FAULT_RETRY);
	dbl->fault_flags |= FAULT_FLAG_TRIED;
	expect_end_by(SIGKILL, user_faulting_thread, (__force int)VM_FAULT_SIGBUS);

	/* Who can't fail waits, come what may. */
	start_waiter(killed_sync);
	send_sig(SIGKILL, dbl->waiter, 1);
	expect_rest();
}

static void gmem_claim_signals(struct kunit *test)
{
	convert_with_waiter(send_signals_in_hook);
	KUNIT_EXPECT_EQ(test, dbl->nr_in_hook, 1);
	KUNIT_EXPECT_EQ(test, end_other(), 0);
	KUNIT_EXPECT_EQ(test, byte_at(CLAIM_END - 1), -1);
}

static int locking_thread(void *arg)
{
	struct inode *inode = dbl->f->inode;
	int r;

	allow_signal(SIGKILL);
	r = kvm_gmem_lock_range(inode, CLAIM_START, CLAIM_END, TASK_KILLABLE);
	if (!r) {
		KUNIT_EXPECT_FALSE(dbl->test,
				   kvm_gmem_is_claimed(inode, CLAIM_START, CLAIM_END));
		kvm_gmem_unlock_range(inode);
	}
	return other_is_done(r);
}

/* As a conversion does it; change_lock is held. */
static void set_claim(pgoff_t start, pgoff_t end)
{
	struct gmem_inode *gi = GMEM_I(dbl->f->inode);

	filemap_invalidate_lock(gi->vfs_inode.i_mapping);
	WRITE_ONCE(gi->claim_start, start);
	WRITE_ONCE(gi->claim_end, end);
	if (!end)
		wake_up_all(&gi->claim_wait);
	filemap_invalidate_unlock(gi->vfs_inode.i_mapping);
}

/*
 * One conversion follows another.  Who has waited for the first has a place in the queue
 * for change_lock, and need not be lucky enough to look between two claims.
 */
static void gmem_claim_turns(struct kunit *test)
{
	struct gmem_inode *gi = GMEM_I(dbl->f->inode);

	scoped_guard(mutex, &gi->change_lock) {
		set_claim(CLAIM_START, CLAIM_END);
		start_waiter(locking_thread);
		set_claim(0, 0);
		expect_rest();
		set_claim(CLAIM_START, CLAIM_END);
		expect_rest();
		set_claim(0, 0);
	}
	KUNIT_EXPECT_EQ(test, end_other(), 0);

	/* This wait can be ended as well. */
	scoped_guard(mutex, &gi->change_lock) {
		set_claim(CLAIM_START, CLAIM_END);
		start_waiter(locking_thread);
		set_claim(0, 0);
		expect_rest();
		send_sig(SIGKILL, dbl->waiter, 1);
		KUNIT_EXPECT_EQ(test, end_other(), -EINTR);
	}
}

static void use_blocks_beside(void)
{
	struct kunit *test = dbl->test;

	if (double_is_locked()) {
		KUNIT_FAIL(test, "invalidate_lock is held");
		return;
	}
	KUNIT_EXPECT_TRUE(test, is_locked_out(0, 1));
	KUNIT_EXPECT_TRUE(test, is_locked_out(NR_PAGES - LARGE - 1, NR_PAGES - LARGE));
	KUNIT_EXPECT_FALSE(test, is_locked_out(NR_PAGES - LARGE, NR_PAGES));
	fill(NR_PAGES - 1, 0x77);
}

/* A claim goes as far as the large folios that are split at the edges. */
static void gmem_large_claim(struct kunit *test)
{
	KUNIT_ASSERT_EQ(test, convert(0, NR_PAGES, true, 0), 0);
	fill(0, 0x11);
	fill(4, 0x44);
	fill(8, 0x88);
	KUNIT_ASSERT_EQ(test, order_at(0), LARGE_ORDER);

	dbl->in_hook = use_blocks_beside;
	KUNIT_EXPECT_EQ(test, convert(1, NR_PAGES - LARGE - 1, false, 0), 0);
	dbl->in_hook = NULL;

	KUNIT_EXPECT_FALSE(test, is_locked_out(0, NR_PAGES));
	expect_state(test, 0, 1, true);
	expect_state(test, 1, NR_PAGES - LARGE - 1, false);
	expect_state(test, NR_PAGES - LARGE - 1, NR_PAGES, true);
	KUNIT_EXPECT_EQ(test, order_at(NR_PAGES - 1), LARGE_ORDER);
	expect_accounts(test);
}

static struct kunit_case gmem_claim_cases[] = {
	KUNIT_CASE(gmem_claim_elsewhere),
	KUNIT_CASE(gmem_claim_short),
	KUNIT_CASE(gmem_claim_discard),
	KUNIT_CASE(gmem_claim_refused),
	KUNIT_CASE(gmem_claim_refused_wakes),
	KUNIT_CASE(gmem_claim_killed),
	KUNIT_CASE(gmem_claim_waits_for_folio),
	KUNIT_CASE(gmem_claim_fault),
	KUNIT_CASE(gmem_claim_map),
	KUNIT_CASE(gmem_claim_allocate),
	KUNIT_CASE(gmem_claim_punch),
	KUNIT_CASE(gmem_claim_sync),
	KUNIT_CASE(gmem_claim_request),
	KUNIT_CASE(gmem_claim_close),
	KUNIT_CASE(gmem_claim_seek),
	KUNIT_CASE(gmem_claim_walk),
	KUNIT_CASE(gmem_claim_user_fault),
	KUNIT_CASE(gmem_claim_user_fault_private),
	KUNIT_CASE(gmem_claim_user_fault_refused),
	KUNIT_CASE(gmem_claim_user_fault_nowait),
	KUNIT_CASE(gmem_claim_signals),
	KUNIT_CASE(gmem_claim_turns),
	{}
};

static struct kunit_suite gmem_claim_suite = {
	.name = "gmem_claim",
	.init = gmem_core_init,
	.exit = gmem_core_exit,
	.test_cases = gmem_claim_cases,
};
