"""The troubleshooting queue as operators use it, with scripts and without."""

from __future__ import annotations

import re
from collections.abc import Callable
from uuid import UUID

import pytest
from playwright.sync_api import Page, expect

from app.actions import jobs
from tests.browser.acting import (
    PERMANENT,
    SOON,
    call_me,
    count,
    execute,
    send,
    send_many,
    status_of,
    trail_of,
    troubled,
    wait_for,
)
from tests.browser.conftest import PHONE
from tests.waiting import eventually_now

pytestmark = pytest.mark.browser

MakePage = Callable[..., Page]
BOTH = pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "plain"])
QUEUE = "/troubleshooting"


def rows(page: Page):
    return page.locator("#tsq li[id^=tsq-]")


def row(page: Page, command_id: str):
    return page.locator(f"#tsq-test-{command_id}")


def select(page: Page, *command_ids: str) -> None:
    for command_id in command_ids:
        row(page, command_id).get_by_role("checkbox").check()


def bar(page: Page):
    return page.get_by_role("region", name="Selection")


def toast(page: Page, text: str | re.Pattern[str]):
    """What was done, wherever it is told."""
    return page.locator(".toast, .alert").filter(has_text=text)


@BOTH
def test_the_queue_shows_what_failed_and_why(make_live_page: MakePage, live_worker, scripts):
    page = make_live_page(java_script_enabled=scripts)
    [command_id] = troubled(page, "CARD_DECLINED")
    page.goto(QUEUE)

    shown = row(page, command_id)
    moment = re.compile("ago|now")
    for text in ("CARD_DECLINED", "Card 4711 was declined", moment):
        expect(shown.get_by_text(text).filter(visible=True).first).to_be_visible()
    shown.locator("summary").click()
    expect(shown.get_by_text("Failed first")).to_be_visible()
    expect(shown.get_by_text("PERMANENT", exact=True)).to_be_visible()
    expect(shown.get_by_role("region", name="Behaviour")).to_contain_text("fail_permanent")
    expect(shown.get_by_role("region", name="Payload")).to_be_visible()
    shown.get_by_role("link", name="Audit trail").click()
    expect(page).to_have_url(re.compile(f"/audit/{command_id}"))


@BOTH
def test_filters_combine(make_live_page: MakePage, live_worker, scripts):
    page = make_live_page(java_script_enabled=scripts)
    [declined, _] = troubled(page, "CARD_DECLINED", "BANK_AWAY")
    page.goto(QUEUE)
    page.get_by_label("Error code", exact=True).select_option("CARD_DECLINED")
    page.get_by_label("Search", exact=True).fill("4711 was")
    page.get_by_role("button", name="Apply").click()

    expect(rows(page)).to_have_count(1)
    expect(row(page, declined)).to_be_visible()
    page.goto(f"{QUEUE}?q={declined[:18]}")
    expect(row(page, declined)).to_be_visible()
    page.goto(f"{QUEUE}?command_type=Other")
    expect(page.get_by_text("No commands match")).to_be_visible()


@BOTH
def test_a_retry_waits_ten_seconds_and_can_be_undone(
    make_live_page: MakePage, live_worker, scripts
):
    page = make_live_page(java_script_enabled=scripts)
    call_me(page, "Ada")
    [command_id] = troubled(page, "CARD_DECLINED")
    page.goto(QUEUE)
    row(page, command_id).get_by_role("button", name="Retry").click()

    # Nothing else is looked at before the click: the ten seconds run, and the trail tells the rest.
    expect(toast(page, "1 retried. It starts in 10 seconds.")).to_be_visible()
    if scripts:
        page.get_by_role("button", name="Undo").click()
    else:
        page.get_by_role("link", name="Undo").click()
        page.get_by_role("button", name="Undo the retry").click()
    expect(toast(page, "1 back in the queue.")).to_be_visible()
    expect(row(page, command_id)).to_be_visible()
    events = [(event["event_type"], event["details"]) for event in trail_of(page, command_id)]
    assert [name for name, _ in events[-2:]] == ["OPERATOR_RETRY", "OPERATOR_RETRY_UNDONE"]
    assert {details["operator"] for _, details in events[-2:]} == {"Ada"}


def test_a_retry_that_has_begun_cannot_be_undone(live_page: Page, live_worker, database_url):
    call_me(live_page, "Ada")
    [command_id] = troubled(live_page, "CARD_DECLINED")
    live_page.goto(QUEUE)
    row(live_page, command_id).get_by_role("button", name="Retry").click()
    expect(toast(live_page, "1 retried")).to_be_visible()
    execute(database_url, "update command_bus_waiting set due_at = now()")
    wait_for(live_page, command_id, "IN_TSQ")
    live_page.get_by_role("button", name="Undo").click()

    expect(toast(live_page, "Too late: no retry waits now.")).to_be_visible()
    names = [event["event_type"] for event in trail_of(live_page, command_id)]
    assert "OPERATOR_RETRY_UNDONE" not in names


@BOTH
def test_the_name_is_asked_once_and_remembered(make_live_page: MakePage, live_worker, scripts):
    page = make_live_page(java_script_enabled=scripts)
    first, second = troubled(page, "A", "B")
    page.goto(QUEUE)
    row(page, first).get_by_role("button", name="Retry").click()
    page.get_by_label("Your name").filter(visible=True).fill("Grace Hopper")
    page.get_by_role("button", name="Retry 1 command").click()
    expect(toast(page, "1 retried")).to_be_visible()
    row(page, second).get_by_role("button", name="Retry").click()

    expect(rows(page)).to_have_count(0)
    assert trail_of(page, second)[-1]["details"]["operator"] == "Grace Hopper"
    page.goto(f"{QUEUE}?view=actions")
    expect(page.locator("#tsq tbody tr")).to_have_count(2)
    expect(page.locator("#tsq tbody tr").first).to_contain_text("Grace Hopper")


@BOTH
def test_complete_with_a_result_and_notes(make_live_page: MakePage, live_worker, scripts):
    page = make_live_page(java_script_enabled=scripts)
    call_me(page, "Ada")
    [command_id] = troubled(page, "CARD_DECLINED")
    page.goto(QUEUE)
    row(page, command_id).get_by_role("button", name="Complete…").click()
    page.get_by_label("Result").fill("{not json")
    page.get_by_role("button", name="Complete 1 command").click()
    expect(page.get_by_text("Not valid JSON").first).to_be_visible()
    assert status_of(page, command_id) == "IN_TSQ"
    page.get_by_label("Result").fill('{"paid": "by hand"}')
    page.get_by_label("Notes").fill("Paid by wire")
    page.get_by_role("button", name="Complete 1 command").click()

    expect(toast(page, "1 completed.")).to_be_visible()
    expect(rows(page)).to_have_count(0)
    details = trail_of(page, command_id)[-1]["details"]
    assert (details["operator"], details["notes"]) == ("Ada", "Paid by wire")
    assert page.request.get(f"/api/v1/commands/{command_id}").json()["result"] == {
        "paid": "by hand"
    }


@BOTH
def test_cancel_asks_for_the_reason(make_live_page: MakePage, live_worker, scripts):
    page = make_live_page(java_script_enabled=scripts)
    call_me(page, "Ada")
    [command_id] = troubled(page, "CARD_DECLINED")
    page.goto(QUEUE)
    row(page, command_id).get_by_role("button", name="Cancel…").click()
    assert status_of(page, command_id) == "IN_TSQ"
    page.get_by_label("Reason").fill("Customer left")
    page.get_by_role("button", name="Cancel 1 command").click()

    expect(toast(page, "1 cancelled.")).to_be_visible()
    assert status_of(page, command_id) == "CANCELLED"
    assert trail_of(page, command_id)[-1]["details"]["reason"] == "Customer left"


@BOTH
def test_selected_rows_are_dealt_with_together(make_live_page: MakePage, live_worker, scripts):
    page = make_live_page(java_script_enabled=scripts)
    call_me(page, "Ada")
    a, b, c = troubled(page, "A", "B", "C")
    page.goto(QUEUE)
    select(page, a, c)
    if scripts:
        expect(bar(page).get_by_text("2 selected")).to_be_visible()
    bar(page).get_by_role("button", name="Cancel…").click()
    page.get_by_label("Reason").fill("Enough")
    page.get_by_role("button", name="Cancel 2 commands").click()

    expect(toast(page, "2 cancelled.")).to_be_visible()
    expect(rows(page)).to_have_count(1)
    assert [status_of(page, each) for each in (a, b, c)] == ["CANCELLED", "IN_TSQ", "CANCELLED"]


def test_the_answer_says_which_commands_were_skipped(live_page: Page, live_worker):
    call_me(live_page, "Ada")
    ids = troubled(live_page, "A", "B", "C", "D", "E")
    live_page.goto(QUEUE)
    live_page.route("**/*partial=*", lambda route: route.fulfill(status=304))
    live_page.get_by_label("Select all on this page").check()
    for command_id in ids[:2]:
        done = live_page.request.post(f"/api/v1/tsq/{command_id}/complete", data={})
        assert done.ok
    assert live_page.request.post(
        f"/api/v1/tsq/{ids[2]}/cancel", data={"reason": "Somebody else"}
    ).ok
    bar(live_page).get_by_role("button", name="Retry").click()

    text = "2 retried, 3 skipped: 2 COMPLETED, 1 CANCELLED"
    expect(toast(live_page, text)).to_be_visible()
    live_page.goto(f"{QUEUE}?view=actions")
    expect(live_page.locator("#tsq tbody tr").first).to_contain_text(text)
    live_page.locator("#tsq tbody a").first.click()
    table = live_page.get_by_role("region", name="Skipped commands")
    expect(table.locator("tbody tr")).to_have_count(3)
    expect(table).to_contain_text(ids[2])


def test_actions_over_the_api_are_listed_with_their_operator(live_page: Page, live_worker):
    call_me(live_page, "Ada")
    ids = troubled(live_page, "A", "B", "C")
    api = live_page.request
    url = f"/api/v1/tsq/{ids[0]}/retry"
    assert api.post(url, data={"operator": "Bob", "delay_seconds": 60}).ok
    body = {"operator": "Cid", "command_ids": ids[1:], "delay_seconds": 60}
    assert api.post("/api/v1/tsq/bulk-retry", data=body).ok

    live_page.goto(f"{QUEUE}?view=actions")

    listed = live_page.locator("#tsq tbody tr")
    expect(listed).to_have_count(2)
    expect(listed.nth(0)).to_contain_text("Cid")
    expect(listed.nth(0)).to_contain_text("2 retried")
    expect(listed.nth(1)).to_contain_text("Bob")
    expect(listed.nth(1)).to_contain_text(ids[0][-4:])
    listed.nth(0).get_by_role("link").click()
    expect(live_page.get_by_text("By Cid")).to_be_visible()


@BOTH
def test_everything_that_matches_is_dealt_with(make_live_page: MakePage, live_worker, scripts):
    page = make_live_page(java_script_enabled=scripts)
    call_me(page, "Ada")
    send_many(page, 30, PERMANENT)
    [other] = troubled(page, "OTHER")
    eventually_now(lambda: count(page, "IN_TSQ") == 31)
    page.goto(f"{QUEUE}?error_code=CARD_DECLINED")
    if scripts:
        page.get_by_label("Select all on this page").check()
        bar(page).get_by_role("button", name="Select all 30 that match").click()
        expect(bar(page).get_by_text("30 selected")).to_be_visible()
    else:
        page.get_by_label("All 30 that match").check()
    bar(page).get_by_role("button", name="Cancel…").click()
    page.get_by_label("Reason").fill("The shop is closed")
    page.get_by_role("button", name="Cancel 30 commands").click()

    expect(toast(page, "30 cancelled.")).to_be_visible()
    assert count(page, "CANCELLED") == 30
    assert status_of(page, other) == "IN_TSQ"


@BOTH
def test_like_failures_stand_together_and_are_retried_together(
    make_live_page: MakePage, live_worker, scripts
):
    page = make_live_page(java_script_enabled=scripts)
    call_me(page, "Ada")
    for number in range(4):
        send_many(page, 1, {**PERMANENT, "error_message": f"Card {number} was declined"})
    troubled(page, "BANK_AWAY")
    eventually_now(lambda: count(page, "IN_TSQ") == 5)
    page.goto(QUEUE)
    page.get_by_role("link", name="Groups").click()

    groups = page.locator("#tsq li")
    expect(groups).to_have_count(2)
    expect(groups.first).to_contain_text("Card <n> was declined")
    expect(groups.first.get_by_role("img")).to_be_visible()
    groups.first.get_by_role("button", name="Retry all").click()
    expect(toast(page, "4 retried. They start in 10 seconds.")).to_be_visible()
    expect(groups).to_have_count(1)
    groups.first.get_by_role("link", name="BANK_AWAY", exact=True).click()
    expect(rows(page)).to_have_count(1)
    expect(page.get_by_text("Only the group")).to_be_visible()


@BOTH
def test_a_retry_is_followed_until_one_sees_that_it_worked(
    make_live_page: MakePage, live_worker, database_url, scripts
):
    page = make_live_page(java_script_enabled=scripts)
    call_me(page, "Ada")
    for _ in range(2):
        send(page, {"type": "fail_transient_then_succeed"}, max_attempts=1)
    send(page, PERMANENT, max_attempts=1)
    eventually_now(lambda: count(page, "IN_TSQ") == 3)
    page.goto(QUEUE)
    tab = page.get_by_role("link", name=re.compile("^Commands 3$"))
    expect(tab).to_be_visible()
    for checkbox in rows(page).get_by_role("checkbox").all():
        checkbox.check()
    bar(page).get_by_role("button", name="Retry").click()

    expect(toast(page, "3 retried.")).to_be_visible()
    expect(tab).to_have_count(0)  # the number beside the tab follows
    page.get_by_role("link", name="Follow").click()
    now = page.get_by_role("region", name="Where they are now")
    expect(now).to_contain_text("The 3 commands")
    execute(database_url, "update command_bus_waiting set due_at = now()")
    eventually_now(lambda: count(page, "COMPLETED") == 2 and count(page, "IN_TSQ") == 1)
    if not scripts:
        page.reload()
    expect(now.locator(".stat", has_text="Completed")).to_contain_text("2")
    now.get_by_role("link", name="In TSQ").click()
    expect(page.locator("#tsq li")).to_contain_text("CARD_DECLINED")


def test_the_link_to_a_group_names_it_when_nothing_is_left_of_it(live_page: Page, live_worker):
    call_me(live_page, "Ada")
    troubled(live_page, "CARD_DECLINED")
    live_page.goto(f"{QUEUE}?view=groups")
    live_page.get_by_role("link", name="CARD_DECLINED", exact=True).click()
    rows(live_page).first.get_by_role("button", name="Cancel…").click()
    live_page.get_by_label("Reason").fill("The shop is closed")
    live_page.get_by_role("button", name="Cancel 1 command").click()
    expect(toast(live_page, "1 cancelled.")).to_be_visible()
    live_page.reload()

    expect(live_page.get_by_text("Only the group CARD_DECLINED")).to_be_visible()
    expect(live_page.get_by_text("This group is empty")).to_be_visible()


def test_more_groups_than_are_shown_are_told_of(live_page: Page, live_worker):
    troubled(live_page, *(f"CODE_{number}" for number in range(51)))
    live_page.goto(f"{QUEUE}?view=groups")

    expect(live_page.locator("#tsq li")).to_have_count(50)
    expect(live_page.locator("#tsq")).to_contain_text("The 50 largest of 51 groups.")


def test_a_large_number_of_a_group_stays_on_one_line(
    make_live_page: MakePage, live_worker, database_url
):
    page = make_live_page(PHONE)
    troubled(page, "CARD_DECLINED")
    execute(database_url, "update command_bus_tsq_group set in_tsq = 100000")
    for width in (360, 800, 1440):
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(f"{QUEUE}?view=groups")

        number = page.locator("#tsq").get_by_text(re.compile(r"^100,00\d$"))
        assert number.evaluate("link => link.getClientRects().length") == 1
        assert number.evaluate(
            "link => link.getBoundingClientRect().right"
            " < link.closest('li').getBoundingClientRect().right"
        )


@BOTH
def test_more_than_five_hundred_run_as_a_job(make_live_page: MakePage, live_worker, scripts):
    page = make_live_page(java_script_enabled=scripts)
    call_me(page, "Ada")
    send_many(page, 1200, PERMANENT)
    eventually_now(lambda: count(page, "IN_TSQ") == 1200)
    page.goto(f"{QUEUE}?view=groups")
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_label("Reason").fill("The shop is closed")
    page.get_by_role("button", name="Cancel 1,200 commands").click()

    expect(page).to_have_url(re.compile("/troubleshooting/actions/"))
    expect(page.get_by_role("heading", name="Cancel 1,200 commands")).to_be_visible()
    if not scripts:
        eventually_now(lambda: count(page, "CANCELLED") == 1200)
        page.reload()
    expect(page.locator("#tsq-job").get_by_text("1,200 cancelled.")).to_be_visible(timeout=SOON)
    expect(page.locator("#tsq-job")).to_contain_text("group: CARD_DECLINED Card <n> was declined")
    expect(page.get_by_text("Done", exact=True)).to_be_visible(timeout=SOON)
    assert count(page, "CANCELLED") == 1200


def test_a_job_whose_process_died_is_taken_over_where_it_stood(
    live_page: Page, live_app, live_worker, database_url, monkeypatch
):
    call_me(live_page, "Ada")
    send_many(live_page, 1200, PERMANENT)
    eventually_now(lambda: count(live_page, "IN_TSQ") == 1200)
    with live_app.test_request_context():
        runner = jobs.current_runner()
    real_step = runner._step
    steps: list[UUID] = []

    def dying(portal, job_id):
        if steps:
            return False  # the thread ends here, and its job does not
        steps.append(job_id)
        return real_step(portal, job_id)

    monkeypatch.setattr(runner, "_step", dying)
    live_page.goto(QUEUE)
    live_page.get_by_label("Select all on this page").check()
    bar(live_page).get_by_role("button", name="Select all 1,200 that match").click()
    bar(live_page).get_by_role("button", name="Cancel…").click()
    live_page.get_by_label("Reason").fill("Half of it")
    live_page.get_by_role("button", name="Cancel 1,200 commands").click()
    expect(live_page.locator("#tsq-job").get_by_text("500 cancelled.")).to_be_visible(timeout=SOON)
    monkeypatch.setattr(runner, "_step", real_step)
    execute(database_url, "update operator_job set heartbeat_at = now() - interval '1 minute'")
    live_page.reload()

    expect(live_page.locator("#tsq-job").get_by_text("1,200 cancelled.")).to_be_visible(
        timeout=SOON
    )
    job_id = UUID(live_page.url.rsplit("/", 1)[-1])
    found = execute(
        database_url,
        "select state, done, changed::text from operator_job where job_id = %s",
        job_id,
    )
    assert found == [("finished", 1200, "{}")]


@BOTH
def test_a_job_is_stopped(make_live_page: MakePage, live_app, live_worker, scripts, monkeypatch):
    page = make_live_page(java_script_enabled=scripts)
    call_me(page, "Ada")
    send_many(page, 1200, PERMANENT)
    eventually_now(lambda: count(page, "IN_TSQ") == 1200)
    with live_app.test_request_context():
        runner = jobs.current_runner()
    monkeypatch.setattr(runner, "start", lambda _: None)
    page.goto(f"{QUEUE}?view=groups")
    page.get_by_role("button", name="Retry all…").click()
    expect(page.get_by_text("you can stop it, not undo it")).to_be_visible()
    page.get_by_role("button", name="Retry 1,200 commands").click()
    page.get_by_role("button", name="Stop").click()

    expect(page.get_by_text("Stopped", exact=True)).to_be_visible()
    assert count(page, "IN_TSQ") == 1200


def test_a_refresh_loses_neither_selection_nor_open_details(live_page: Page, live_worker):
    call_me(live_page, "Ada")
    first, second = troubled(live_page, "A", "B")
    live_page.goto(QUEUE)
    select(live_page, first)
    row(live_page, second).locator("summary").click()
    troubled(live_page, "C")
    live_page.keyboard.press("Escape")
    live_page.get_by_role("button", name="Refresh now").click()

    expect(rows(live_page)).to_have_count(3)
    expect(row(live_page, first).get_by_role("checkbox")).to_be_checked()
    expect(row(live_page, second).locator("details")).to_have_attribute("open", "")
    expect(bar(live_page).get_by_text("1 selected")).to_be_visible()


def test_the_dialog_works_by_keyboard_and_keeps_the_queue(live_page: Page, live_worker):
    call_me(live_page, "Ada")
    [command_id] = troubled(live_page, "A")
    live_page.goto(QUEUE)
    button = row(live_page, command_id).get_by_role("button", name="Cancel…")
    button.focus()
    live_page.keyboard.press("Enter")
    dialog = live_page.get_by_role("dialog", name="Cancel 1 command")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_label("Reason")).to_be_focused()
    live_page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button).to_be_focused()
    checkbox = row(live_page, command_id).get_by_role("checkbox")
    checkbox.focus()
    live_page.keyboard.press("Enter")

    assert status_of(live_page, command_id) == "IN_TSQ"


def test_rejected_messages_are_listed(live_page: Page, database_url):
    live_page.goto(f"{QUEUE}?view=rejected")
    expect(live_page.get_by_text("No rejected messages")).to_be_visible()
    execute(
        database_url,
        "insert into command_bus_rejected (domain, queue, msg_id, reason, message, rejected_at)"
        " values ('test', 'test__commands', 7, 'not JSON of ours', '{\"a\": 1}', now())",
    )
    live_page.reload()
    expect(live_page.get_by_text("not JSON of ours")).to_be_visible()
    live_page.locator("#tsq summary").click()
    expect(live_page.get_by_role("region", name="Message 7")).to_contain_text('{"a": 1}')


def test_a_phone_can_do_it_all(make_live_page: MakePage, live_worker):
    page = make_live_page(PHONE, has_touch=True)
    call_me(page, "Ada")
    first, second = troubled(page, "A", "B")
    page.goto(QUEUE)
    select(page, first)
    bar(page).get_by_role("button", name="Complete…").click()
    page.get_by_role("button", name="Complete 1 command").click()
    expect(toast(page, "1 completed.")).to_be_visible()
    expect(rows(page)).to_have_count(1)
    row(page, second).get_by_role("button", name="Retry").click()

    expect(rows(page)).to_have_count(0)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"keys": "test:no-id"},
        {"keys": "nowhere:01900000-0000-7000-8000-000000000000"},
        {"scope": "filter", "filter_q": "nothing"},
    ],
)
def test_a_form_that_chooses_nothing_changes_nothing(live_page: Page, form):
    call_me(live_page, "Ada")
    live_page.goto(QUEUE)
    token = live_page.locator("meta[name=csrf-token]").get_attribute("content") or ""
    answer = live_page.request.post(f"{QUEUE}/retry", form={"csrf_token": token, **form})

    assert answer.status == 200
    assert "Nothing was selected" in answer.text()


def test_forty_failures_fit_where_ten_did(live_page: Page, live_worker):
    send_many(live_page, 50, PERMANENT)
    eventually_now(lambda: count(live_page, "IN_TSQ") == 50)
    for path, row_of in (
        (f"{QUEUE}?limit=50", "#tsq li"),
        ("/commands?limit=50", "#commands tbody tr"),
    ):
        live_page.goto(path)
        heights = live_page.locator(row_of).evaluate_all(
            "rows => rows.map((row) => row.getBoundingClientRect().height)"
        )

        assert len(heights) == 50
        assert max(heights) <= 44, (path, max(heights))
