// Live refresh, and buttons that act without leaving the page.  Without it all pages work as well.
(function () {
    'use strict';

    var live = document.getElementById('reliable-live');
    var pulse = document.getElementById('reliable-pulse');
    var messages = document.getElementById('reliable-messages');
    var dialog = document.getElementById('reliable-dialog');
    var timer = null;
    var looks = 0;
    var acting = false;

    // An address as it is fetched: where the page was opened with user and password in its address,
    // browsers refuse what is relative to that.
    function here(path) {
        return new URL(path, window.location.origin).href;
    }

    // -- messages ------------------------------------------------------------

    function say(text, level) {
        var said = document.createElement('div');
        said.className = 'reliable-said reliable-said-' + level;
        said.textContent = text;
        messages.appendChild(said);
        while (messages.children.length > 4) {
            messages.firstChild.remove();
        }
        setTimeout(function () { said.remove(); }, level === 'success' ? 6000 : 12000);
    }

    // -- live refresh --------------------------------------------------------

    function isOn() {
        return pulse !== null && pulse.getAttribute('aria-pressed') === 'true';
    }

    function show(text, lost) {
        if (pulse !== null) {
            document.getElementById('reliable-pulse-text').textContent = text;
            pulse.classList.toggle('reliable-lost', lost);
        }
    }

    // What somebody has entered, or is about to choose, must not vanish under their hands.
    function isBusy() {
        var fields = live.querySelectorAll('input:not([type=hidden]), select, textarea');
        var entered = Array.prototype.some.call(fields, function (field) {
            return field.value !== field.defaultValue && field.defaultValue !== undefined;
        });
        var selection = document.getSelection();
        var selecting = selection !== null && !selection.isCollapsed && live.contains(selection.anchorNode);
        var focused = live.contains(document.activeElement) && document.activeElement.matches('input, select, textarea');
        return document.hidden || acting || dialog.open || entered || selecting || focused;
    }

    function keepFocus(act) {
        var buttons = Array.from(live.querySelectorAll('button, a'));
        var at = buttons.indexOf(document.activeElement);
        act();
        if (at >= 0) {
            var again = live.querySelectorAll('button, a')[at];
            if (again) {
                again.focus({preventScroll: true});
            }
        }
    }

    // One that nobody asked for waits for whoever has begun to enter something meanwhile.
    function look(unasked) {
        var number = ++looks;
        return fetch(here(window.location.pathname + window.location.search), {credentials: 'same-origin', cache: 'no-store'}).then(function (answer) {
            return answer.text().then(function (text) {
                if (number !== looks) {
                    return; // a later look is under way
                }
                var page = new DOMParser().parseFromString(text, 'text/html');
                var fresh = page.getElementById('reliable-live');
                if (fresh === null) {
                    window.location.reload(); // we were logged out
                    return;
                }
                if (answer.status === 503) {
                    show('No answer', true);
                    return;
                }
                if (unasked && isBusy()) {
                    return;
                }
                keepFocus(function () { live.innerHTML = fresh.innerHTML; });
                show(isOn() ? 'Live' : 'Paused', false);
            });
        }).catch(function () {
            show('No answer', true);
        });
    }

    function later() {
        clearTimeout(timer);
        if (isOn()) {
            timer = setTimeout(function () {
                if (isBusy()) {
                    later();
                } else {
                    look(true).then(later);
                }
            }, Number(live.dataset.every));
        }
    }

    if (pulse !== null) {
        pulse.addEventListener('click', function () {
            pulse.setAttribute('aria-pressed', isOn() ? 'false' : 'true');
            show(isOn() ? 'Live' : 'Paused', false);
            if (isOn()) {
                look().then(later);
            } else {
                clearTimeout(timer);
            }
        });
        document.addEventListener('visibilitychange', function () {
            if (!document.hidden && isOn() && !isBusy()) {
                look(true).then(later);
            }
        });
        later();
    }

    // -- actions -------------------------------------------------------------

    function ask(question) {
        return new Promise(function (resolve) {
            document.getElementById('reliable-question').textContent = question;
            dialog.returnValue = 'no';
            dialog.addEventListener('close', function () {
                resolve(dialog.returnValue === 'yes');
            }, {once: true});
            dialog.showModal();
        });
    }

    function send(form) {
        var button = form.querySelector('button[type=submit]');
        acting = true;
        button.disabled = true;
        return fetch(here(form.getAttribute('action')), {
            method: 'POST',
            credentials: 'same-origin',
            headers: {'Accept': 'application/json'},
            body: new URLSearchParams(new FormData(form))
        }).then(function (answer) {
            return answer.json().then(function (said) {
                say(said.message, said.level);
                // What was entered is sent: it is not in the way of the next look.
                form.querySelectorAll('input:not([type=hidden])').forEach(function (field) {
                    if (answer.ok) {
                        field.defaultValue = field.value;
                    }
                    field.blur();
                });
            }, function () {
                say('Flower did not let this through (' + answer.status + ').', 'danger');
            });
        }).catch(function () {
            say('Flower does not answer.', 'danger');
        }).then(function () {
            acting = false;
            button.disabled = false;
            return look();
        }).then(later);
    }

    document.addEventListener('submit', function (event) {
        var form = event.target;
        if (!form.classList.contains('reliable-act')) {
            return;
        }
        event.preventDefault();
        if (acting || form.querySelector('button[type=submit]').disabled) {
            return;
        }
        var question = form.getAttribute('data-confirm');
        if (!question) {
            send(form);
            return;
        }
        ask(question).then(function (yes) {
            if (yes) {
                send(form);
            }
        });
    });
}());
