-- Until when the link of a mail is good, while an attempt to send it may have delivered it: what was sent then keeps its
-- link and its time, and is not sent again once the link has been used. Null: nobody has the link.
alter table mails add column link_expires_at timestamptz;

---- create above / drop below ----

alter table mails drop column link_expires_at;
